r"""Read published estimates of memorisation into the table memorization_truth, for scores to be compared with.

  ddlab import-memorization my_cifar100 cifar100_infl_matrix.npz --index-map tf_to_torch.npy

reads the fields tr_labels and tr_mem of Feldman & Zhang's file. It is in the order of TensorFlow's data set: the index
map, an integer for each of its images, says which row of the data set here that is. Labels are compared, and a file
whose labels disagree is refused.
"""

import argparse
import sys
from pathlib import Path

from dd_assets.catalogue import catalogue
from dd_assets.laboratory import writable_store
from dd_core.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Import; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="ddlab import-memorization",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", help="name of the study whose scores are compared with them")
    parser.add_argument("file", type=Path, help="the .npz")
    parser.add_argument("--index-map", type=Path, metavar="FILE.npy", help="row of the data set of each of its images")
    options = parser.parse_args(arguments)
    try:
        from dd_core.exchange.memorization import import_memorization
        from dd_core.tables.warehouse import refresh

        store = writable_store()
        done = import_memorization(store, catalogue().get(options.study), options.file, options.index_map)
        refresh(store)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"{done.source}: {done.num_images:,} images for {', '.join(done.arms)}")
    print("Dagster is not told of it; compare scores with it: dagster asset materialize --select group:memorization")
    return 0


if __name__ == "__main__":
    sys.exit(main())
