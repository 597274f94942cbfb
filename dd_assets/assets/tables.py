"""Assets of the tables that training writes: each one's row count, and its view in the warehouse."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import dagster as dg

from dd_assets.laboratory import Laboratory
from dd_assets.steps.harms import warn_of_harms
from dd_assets.steps.user_errors import shown_as_sentence
from dd_assets.steps.versions import TRAINED, table_version
from dd_core.errors import UserError
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.files import TABLES
from dd_core.words import counted

TRAINING_TABLES = (
    *("images", "runs", "training_batches", "training_evals", "training_monitors", "image_progress"),
    "class_progress",
)


def table_spec(name: str, deps: Iterable[dg.AssetKey], group: str = "tables") -> dg.AssetSpec:
    """An unpartitioned table shared by all studies."""
    table = TABLES[name]
    columns = [dg.TableColumn(c.name, c.type, description=c.description) for c in table.columns]
    return dg.AssetSpec(
        name,
        deps=list(deps),
        description=table.description,
        group_name=group,
        kinds={"parquet", "duckdb"},
        metadata={
            "dagster/column_schema": dg.MetadataValue.table_schema(dg.TableSchema(columns=columns)),
            "dagster/table_name": name,
        },
        skippable=True,
    )


def refreshed(store: Store, names: Iterable[str]) -> dict[str, int]:
    """Rebuild the warehouse file; the number of rows by table."""
    from dd_core.tables.warehouse import connect, refresh

    refresh(store)
    names = tuple(names)
    with contextlib.closing(connect(store, names)) as connection:
        counts = [connection.sql(f"SELECT count(*) FROM {name}").fetchall()[0][0] for name in names]
    return dict(zip(names, counts, strict=True))


def table_results(
    context: dg.AssetExecutionContext,
    store: Store,
    numbers: Mapping[str, int],
    facts: Mapping[str, Any],
    tags: Mapping[str, str] | None,
) -> Iterator[dg.MaterializeResult[Any]]:
    """What a step that makes several tables tells of those that were selected.

    ``numbers``: rows by table; ``facts``: metadata of all of them; ``tags``: of staleness.
    """
    for key in sorted(context.selected_asset_keys):
        name = key.to_user_string()
        yield dg.MaterializeResult(
            asset_key=key,
            metadata={"dagster/row_count": numbers[name], "dagster/uri": str(store.table_folder(name)), **facts},
            data_version=dg.DataVersion(table_version(store, name)),
            tags=tags,
        )


def tables_asset(studies: dict[str, Study]) -> dg.AssetsDefinition:
    """All tables of training as one step that can be run in part."""
    specs = [table_spec(name, [TRAINED.key]) for name in TRAINING_TABLES]

    @dg.multi_asset(name="tables", specs=specs, can_subset=True)
    def tables(context: dg.AssetExecutionContext, laboratory: Laboratory) -> Iterator[dg.MaterializeResult[Any]]:
        import contextlib

        from dd_core.tables.warehouse import connect, refresh

        with shown_as_sentence():
            store = laboratory.store()
            selected = {key.to_user_string() for key in context.selected_asset_keys}
            trained = [study for study in studies.values() if trained_checkpoints(store, study)]
            imported = [study for study in studies.values() if study.imported is True and _is_there(store, study)]
            if not trained and not imported:
                raise UserError(f"nothing is trained yet under {store.root}, so there is nothing to tabulate")
            if "images" in selected:
                from dd_core.tables.images import write_images

                for study in trained:
                    write_images(store, study)
            views = refresh(store)
            facts = warn_of_harms(context, store, studies.values(), selected)
            with contextlib.closing(connect(store, sorted(selected))) as connection:
                for name in sorted(selected & set(views)):
                    rows = connection.sql(f"SELECT count(*) FROM {name}").fetchone()
                    assert rows is not None
                    yield dg.MaterializeResult(
                        asset_key=name,
                        metadata={
                            "dagster/row_count": rows[0],
                            "dagster/uri": str(store.table_folder(name)),
                            "studies": ", ".join(study.name for study in (*trained, *imported)),
                            **facts,
                        },
                        data_version=dg.DataVersion(table_version(store, name)),
                    )
            sql = "" if "://" in store.address else f"; SQL: duckdb -readonly {store.warehouse_path}"
            context.log.info(f"done: {counted(len(selected & set(views)), 'table')}{sql}")

    return tables


def _is_there(store: Store, study: Study) -> bool:
    """Whether metrics of an imported study lie in the data root."""
    return any(store.table_folder(name, study.name).is_dir() for name in TRAINING_TABLES)
