// The immunize nodes show what happened: loss and gradient norm of the last run, its largest change and its time.
import { app } from "../../scripts/app.js";
import { shows } from "./shown.js";
import { say } from "./words.js";

const NODES = ["SIFM_Immunize", "SIFM_BaselineImmunize"];
const HEIGHT = 110;
const LOSS = "#6cb6ff", GRADIENT = "#e0a458";

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Values from left to right, each curve on a scale of its own.
function line(values, stroke) {
  const low = Math.min(...values), span = Math.max(...values) - low || 1, last = Math.max(1, values.length - 1);
  const points = values.map((value, i) => `${((100 * i) / last).toFixed(2)},${(38 - (36 * (value - low)) / span).toFixed(2)}`);
  return svg("polyline", { points: points.join(" "), fill: "none", stroke, "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" });
}

function show(element, words, curves = []) {
  const label = document.createElement("div");
  label.append(...words.map(([textContent, color = ""]) => Object.assign(document.createElement("span"), { textContent, style: `color: ${color}` })));
  const plot = svg("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", style: "width: 100%; flex: 1; min-height: 0" });
  plot.append(...curves.map(([values, color]) => line(values, color)));
  element.replaceChildren(...(curves.length ? [plot] : []), label);
}

function result(element, { method, loss, log }, linf, seconds, doctor) {
  const number = (x) => x.toPrecision(4), steps = loss.length ? `, ${loss.length} steps` : "";
  const gradients = log.map((step) => step.grad).filter(Number.isFinite);
  const curves = [[gradients, GRADIENT], [loss, LOSS]].filter(([values]) => values.length > 1);
  const words = [[`${method}, changes of up to ${Math.round(linf * 255)}/255${steps}, ${seconds.toFixed(1)} s`]];
  if (loss.length) words.push([`, loss ${number(loss[0])} to ${number(loss.at(-1))}`, LOSS]);
  if (gradients.length) words.push([", gradient norm", GRADIENT]);
  if (doctor.length) words.push([", gradient checked (point here)"]);
  element.title = doctor.join("\n");
  show(element, words, curves);
}

app.registerExtension({
  name: "sifm.curve",
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    const element = document.createElement("div");
    Object.assign(element.style, {
      display: "flex", flexDirection: "column", gap: "4px", height: "100%", maxHeight: "200px", boxSizing: "border-box", padding: "4px 6px",
      font: "11px sans-serif", color: "var(--descrip-text, #999)", overflow: "hidden",
    });
    show(element, [[say("The loss curve appears here after a run.")]]);
    const widget = node.addDOMWidget("sifm_curve", "sifm_curve", element, {
      serialize: false, hideOnZoom: false, hideInPanel: true, getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT,
    });
    widget.serialize = false;
    shows(node, (output) => {
      const last = output.sifm_curve?.at(-1); // of a list of pictures, the last
      if (last) result(element, last, output.sifm_linf.at(-1), output.sifm_seconds.at(-1), output.sifm_doctor ?? []);
    });
  },
});
