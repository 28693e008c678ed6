// The immunize nodes show what happened: the loss curve of the last run, its largest change and its time.
import { app } from "../../scripts/app.js";

const NODES = ["SIFM_Immunize", "SIFM_BaselineImmunize"];
const HEIGHT = 92;

function curve(losses) {
  const low = Math.min(...losses), span = Math.max(...losses) - low || 1;
  const points = losses.map((loss, i) => {
    const x = (100 * i) / Math.max(1, losses.length - 1), y = 38 - (36 * (loss - low)) / span;
    return `${x.toFixed(2)},${y.toFixed(2)}`;
  });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 40");
  svg.setAttribute("preserveAspectRatio", "none");
  Object.assign(svg.style, { width: "100%", flex: "1", minHeight: "0" });
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points.join(" "));
  line.setAttribute("fill", "none");
  line.setAttribute("stroke", "#6cb6ff");
  line.setAttribute("stroke-width", "1.5");
  line.setAttribute("vector-effect", "non-scaling-stroke");
  svg.append(line);
  return svg;
}

function show(element, text, losses = []) {
  const label = document.createElement("div");
  label.textContent = text;
  element.replaceChildren(...(losses.length > 1 ? [curve(losses)] : []), label);
}

function summary({ method, loss }, linf, seconds) {
  const number = (x) => x.toPrecision(4);
  const fall = loss.length ? `loss ${number(loss[0])} to ${number(loss.at(-1))} in ${loss.length} steps` : method;
  return `${fall}, changes of up to ${Math.round(linf * 255)}/255, ${seconds.toFixed(1)} s`;
}

app.registerExtension({
  name: "sifm.curve",
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    const element = document.createElement("div");
    Object.assign(element.style, {
      display: "flex", flexDirection: "column", gap: "4px", height: "100%", boxSizing: "border-box", padding: "4px 6px",
      font: "11px sans-serif", color: "var(--descrip-text, #999)", overflow: "hidden",
    });
    show(element, "The loss curve appears here after a run.");
    const widget = node.addDOMWidget("sifm_curve", "sifm_curve", element, {
      serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT,
    });
    widget.serialize = false;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      const last = output?.sifm_curve?.at(-1); // of a list of pictures, the last
      if (last) show(element, summary(last, output.sifm_linf.at(-1), output.sifm_seconds.at(-1)), last.loss);
    };
  },
});
