"""How fast the command line answers: ``dagster asset list`` here against an empty Dagster project.

Ratio ``asset_list``: ours over empty, at most 1.5.
"""

import os
import statistics
import subprocess
import tempfile
from pathlib import Path

from common import interleaved, median_ratio, parse_arguments, write_json

EMPTY = """
import dagster as dg

@dg.asset
def nothing(): ...

defs = dg.Definitions(assets=[nothing])
"""


def main() -> None:
    """Run and print."""
    arguments = parse_arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "empty_project.py").write_text(EMPTY, encoding="utf-8")
        common = {**os.environ, "DAGSTER_HOME": folder, "DD_ROOT": folder}
        common.pop("DAGSTER_WORKING_DIRECTORY", None)

        def asset_list(module: str, where: str) -> None:
            environment = {**common, "DAGSTER_MODULE_NAME": module}
            subprocess.run(["dagster", "asset", "list"], env=environment, cwd=where, check=True, capture_output=True)

        seconds = interleaved(
            {
                "ours": lambda: asset_list("dd_assets.definitions", folder),
                "empty": lambda: asset_list("empty_project", folder),
            },
            repeats=arguments.repeats or (3 if arguments.quick else 9),
        )
    median, low, high = median_ratio(seconds["ours"], seconds["empty"])
    for name, values in seconds.items():
        print(f"{name:8s} median {statistics.median(values):6.2f} s")
    print(f"ratio ours / empty: {median:.2f} ({low:.2f} to {high:.2f}); at most 1.5 is wanted")
    write_json(arguments.json, {"asset_list": median})


if __name__ == "__main__":
    main()
