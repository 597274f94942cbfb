"""The quickstart's story, told from its results: SQL, a curve, a checkpoint, and the images that it memorises.

    make quickstart
    marimo edit docs/notebook/quickstart.py     # or: marimo run, or: python docs/notebook/quickstart.py

It reads the data root ``DD_ROOT`` (default: ``data``) and writes nothing.
"""

import marimo

app = marimo.App(width="medium", app_title="Double descent, from its results")


@app.cell
def _():
    import altair as alt
    import marimo as mo
    import numpy as np
    import torch

    import dd_core
    from dd_core.curvature import per_image_curvature

    lab = dd_core.open()
    return alt, lab, mo, np, per_image_curvature, torch


@app.cell
def _(lab, mo):
    mo.md(f"""
    # Double descent, from its results

    Twenty small residual networks learned 1,000 handwritten digits, a fifth of them with a wrong label. What became
    of them lies in `{lab.root}`. This page asks for it in SQL, draws it, loads one of the networks, and looks at the
    images that bend its loss most.
    """)
    return


@app.cell
def _(lab):
    widths = lab.sql("""
        SELECT k, avg(test_error) AS test_error, avg(train_error) AS train_error, count(*) AS num_trials
        FROM training_evals
        WHERE study = 'quickstart' AND epoch = (SELECT max(epoch) FROM training_evals WHERE study = 'quickstart')
        GROUP BY k ORDER BY k
    """).df()
    widths.round(3)
    return (widths,)


@app.cell
def _(alt, widths):
    curve = (
        alt.Chart(widths.melt("k", ["test_error", "train_error"], "of", "error"))
        .mark_line(point=True)
        .encode(
            x=alt.X("k:Q", title="width k", scale=alt.Scale(type="log", base=2)),
            y=alt.Y("error:Q", title="error, mean of trials", axis=alt.Axis(format="%")),
            color=alt.Color("of:N", title=None),
            tooltip=["k", "of", alt.Tooltip("error", format=".1%")],
        )
        .properties(width=520, height=260)
    )
    curve
    return (curve,)


@app.cell
def _(mo, widths):
    # The worst network behind the best of the narrower ones: the peak, if there is one.
    lowest_so_far = widths.test_error.cummin()
    peak = widths.loc[(widths.test_error - lowest_so_far).idxmax()]
    chosen = mo.ui.dropdown({str(k): int(k) for k in widths.k}, value=str(int(peak.k)), label="Look at k =")
    mo.md(f"""
    ## The peak

    At k = {int(peak.k)} the test error is {peak.test_error:.1%},
    {100 * (peak.test_error - lowest_so_far[peak.name]):.1f} points above the best of the narrower networks, and the
    training error is {peak.train_error:.1%}: from about here on a network can learn all labels by heart, the wrong ones
    too. {chosen}
    """)
    return chosen, peak


@app.cell
def _(chosen, lab, torch):
    checkpoint = lab.checkpoint("quickstart", k=chosen.value)
    model = checkpoint.model(trial=0)
    data = checkpoint.training_data(trial=0)
    with torch.no_grad():
        wrong = (model(data.images).argmax(1) != data.labels).float().mean().item()
    return checkpoint, data, model, wrong


@app.cell
def _(checkpoint, mo, model, wrong):
    mo.md(f"""
    ## One network

    `{checkpoint.path}` holds the weights of {checkpoint.manifest.trials} trials. The first of them is a module of
    PyTorch with {sum(p.numel() for p in model.parameters()):,} parameters; asked about the images that it was trained
    on, it gets {wrong:.1%} of the labels wrong that it was given.
    """)
    return


@app.cell
def _(checkpoint, lab):
    curved = lab.sql(
        """
        SELECT image_id, trace, is_noisy, given_label, true_label FROM per_image_curvature
        WHERE study = 'quickstart' AND arm = $arm AND epoch = $epoch AND trial = 0
        ORDER BY trace DESC
        """,
        {"arm": checkpoint.checkpoint.arm.key, "epoch": checkpoint.checkpoint.epoch},
    ).df()
    top = curved.head(12)
    return curved, top


@app.cell
def _(data, model, np, per_image_curvature, top):
    # The same again, by hand: any network in eval mode and any images will do.
    rows = np.searchsorted(data.image_ids, top.image_id)
    by_hand = per_image_curvature(model, data.images[rows], data.labels[rows]).columns["trace"].numpy()
    return by_hand, rows


@app.cell
def _(by_hand, curved, mo, np, top):
    mo.md(f"""
    ## What it memorised

    The trace of the loss's Hessian in an image says how sharply the loss bends around it. Of the {len(top)} most curved
    training images {int(top.is_noisy.sum())} have a wrong label; of all of them {curved.is_noisy.mean():.0%} have.
    Computed here from the weights, the traces differ from the table's by at most
    {np.max(np.abs(by_hand / top.trace - 1)):.0e} of their value.
    """)
    return


@app.cell
def _(data, mo, rows, top):
    def picture(row, of):
        pixels = data.images[row, 0]
        shades = (255 * (pixels.max() - pixels) / (pixels.max() - pixels.min())).byte().numpy()
        label = f"{of.given_label}, truly {of.true_label}" if of.is_noisy else f"{of.given_label}"
        return mo.vstack(
            [mo.image(shades, width=72, style={"image-rendering": "pixelated"}), mo.md(label)], align="center"
        )

    mo.hstack([picture(row, of) for row, of in zip(rows, top.itertuples(), strict=True)], wrap=True, justify="start")
    return


if __name__ == "__main__":
    app.run()
