// Asks for the curves every few seconds and puts them into the charts that are there, so that zoom and choice stay.
"use strict";
const BUSY_SECONDS = 2, IDLE_SECONDS = 10, MOST_SHOWN = 16;
const SPLITS = [["test", "test"], ["validation", "test"], ["train", "training"], ["batch", "batches"]];
const element = id => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const choices = new Map();  // arms that somebody has switched on or off
let charts = null, last = null, asked = new URLSearchParams(location.search).get("study");

function specification(quantity) {
  const ink = dark.matches ? "#c8c8c6" : "#333", line = dark.matches ? "#333" : "#e2e2e2";
  return {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json",
    width: "container", height: 320, background: null, padding: 2,
    autosize: { type: "fit", contains: "padding", resize: true },  // labels grow with what comes
    data: { name: "rows" },
    transform: [{ filter: `datum.quantity === '${quantity}'` }],
    layer: [
      { mark: { type: "line", clip: true, strokeWidth: 1.8 }, params: [{ name: "zoom", select: "interval", bind: "scales" }] },
      { mark: { type: "point", clip: true, filled: true, size: 40, opacity: 1 }, transform: [{ filter: "datum.isLast" }] },
      { mark: { type: "point", clip: true, filled: true, size: 60, opacity: 0 } },  // what the pointer finds
    ],
    encoding: {
      x: { field: "epoch", type: "quantitative", title: "epoch", axis: { tickMinStep: 1 } },
      y: { field: "value", type: "quantitative", title: null, scale: { zero: quantity === "error" } },
      color: { field: "color", type: "nominal", scale: null },
      strokeDash: { field: "split", type: "nominal", legend: null, scale: { domain: ["test", "training", "batches"], range: [[1, 0], [5, 3], [1, 3]] } },
      detail: [{ field: "arm" }, { field: "source" }],
      tooltip: [{ field: "arm" }, { field: "source", title: "images" }, { field: "epoch" },
                { field: "value", format: ".4~g", title: quantity === "error" ? "error, %" : "loss, nats" }],
    },
    config: {
      view: { stroke: null }, font: "system-ui, Arial, sans-serif",
      axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line },
    },
  };
}

async function draw() {
  const options = { actions: false, renderer: "canvas", logLevel: 1 };
  const embedded = ["error", "loss"].map(quantity => vegaEmbed("#" + quantity, specification(quantity), options));
  return (await Promise.all(embedded)).map(result => result.view);
}

// From blue over green to yellow as widths grow, without the ends that vanish on paper or on a dark page.
const color = (index, count) => `hsl(${(250 - 210 * (count > 1 ? index / (count - 1) : 0)).toFixed()} 75% ${dark.matches ? 62 : 42}%)`;

function isShown(arm, arms) {
  if (choices.has(arm.arm)) return choices.get(arm.arm);
  return arms.length <= MOST_SHOWN || arm.state === "training" || arms.slice(-MOST_SHOWN).includes(arm);
}

function rowsOf(arms) {
  const rows = [];
  for (const [index, arm] of arms.entries()) {
    if (!isShown(arm, arms)) continue;
    for (const [source, split] of SPLITS) {
      for (const quantity of ["error", "loss"]) {
        const first = rows.length;
        (arm[`${source}_${quantity}`] || []).forEach((value, at) => {
          const evaluated = source === "batch" && arm[`train_${quantity}`] && arm[`train_${quantity}`][at] !== null;
          if (value !== null && !evaluated) {
            rows.push({ arm: arm.arm, color: color(index, arms.length), split, source, quantity, epoch: arm.epochs[at], value: quantity === "error" ? 100 * value : value });
          }
        });
        if (rows.length > first) rows.at(-1).isLast = true;
      }
    }
  }
  return rows;
}

const newest = values => (values || []).reduce((found, value) => value ?? found, null);
const percent = value => value === null ? "–" : `${(100 * value).toFixed(1)} %`;
const nats = value => value === null ? "–" : Number(value.toPrecision(3)).toString();
function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
const state = (arm, now) => arm.state === "silent" ? `no news for ${duration(now - arm.news_at)}` : arm.state;

function tell(answer) {
  const training = answer.arms.filter(arm => arm.state === "training").length;
  const done = `${answer.num_done} of ${answer.num_arms} ${answer.num_arms === 1 ? "arm" : "arms"} done`;
  element("title").textContent = answer.study || "Live";
  element("summary").textContent = answer.study
    ? [done, training && `${training} in training`, answer.seconds_left != null && `about ${duration(answer.seconds_left)} left`].filter(Boolean).join(", ")
    : "Nothing has been trained in this data root yet. Curves appear here as soon as something trains.";
  const shares = answer.arms.map(arm => arm.is_done ? 1 : (arm.epochs.at(-1) ?? 0) / (arm.until || Infinity));
  element("done").style.width = `${100 * shares.reduce((sum, share) => sum + share, 0) / (answer.num_arms || 1)}%`;
  document.title = answer.study ? `${training ? "● " : ""}${answer.study}: ${done}` : "Live";
  const options = answer.studies.map(name => new Option(name, name, false, name === answer.study));
  if (options.map(option => option.value).join() !== [...element("studies").options].map(option => option.value).join()) {
    element("studies").replaceChildren(...options);
  }
  element("studies").value = answer.study;
}

function list(answer) {
  const arms = answer.arms;
  element("arms").replaceChildren(...arms.map((arm, index) => {
    const row = document.createElement("tr"), box = document.createElement("input"), dot = document.createElement("span");
    Object.assign(box, { type: "checkbox", checked: isShown(arm, arms), ariaLabel: `show ${arm.arm}` });
    box.onchange = () => { choices.set(arm.arm, box.checked); show(last); };
    dot.className = "dot";
    dot.style.background = color(index, arms.length);
    const test = what => newest(arm[`test_${what}`]) ?? newest(arm[`validation_${what}`]);
    const train = what => newest(arm[`train_${what}`]) ?? newest(arm[`batch_${what}`]);
    const cells = [arm.arm, state(arm, answer.now), `${arm.epochs.at(-1) ?? 0}${arm.until ? ` of ${arm.until}` : ""}`,
      percent(train("error")), percent(test("error")), nats(train("loss")), nats(test("loss")), duration(arm.seconds_left)];
    row.append(...cells.map((text, column) => {
      const cell = document.createElement("td");
      if (column === 0) cell.append(box, dot);
      if (column > 1) cell.className = "number";
      cell.append(text);
      return cell;
    }));
    row.dataset.arm = arm.arm;
    row.dataset.state = arm.state;
    row.dataset.epoch = arm.epochs.at(-1) ?? 0;
    return row;
  }));
}

function show(answer) {
  last = answer;
  tell(answer);
  list(answer);
  const rows = rowsOf(answer.arms);
  const told = JSON.stringify(rows);
  if (charts.told === told) return;
  charts.told = told;
  for (const view of charts) view.data("rows", rows).run();
}

async function follow() {
  let wait = IDLE_SECONDS;
  if (!document.hidden) {
    try {
      charts = charts || await draw();
      const address = "live.json" + (asked ? "?study=" + encodeURIComponent(asked) : "");
      const answer = await fetch(address).catch(() => { throw new Error("the server does not answer; trying again"); });
      if (!answer.ok) throw new Error(await answer.text());
      show(await answer.json());
      if (last.arms.some(arm => arm.state === "training")) wait = BUSY_SECONDS;
      element("pulse").textContent = `updated ${new Date().toLocaleTimeString()}`;
    } catch (error) {
      console.error(error);
      element("pulse").textContent = error.message;
      wait = BUSY_SECONDS;
    }
  }
  clearTimeout(timer);
  timer = setTimeout(follow, 1000 * wait);
}

let timer = null;
element("studies").onchange = event => { asked = event.target.value; history.replaceState(null, "", "?study=" + asked); follow(); };
document.addEventListener("visibilitychange", () => document.hidden || follow());
dark.addEventListener("change", async () => { charts = await draw(); if (last) show(last); });
follow();
