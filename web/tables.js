// Nodes that end in a table or in verdicts show them: the headings, sentences and tables that they give as data, and
// below them the edits with what the judges say.
import { app } from "../../scripts/app.js";
import { shows } from "./shown.js";
import { say } from "./words.js";
import { ask, attacked, compare, gallery, inRun, inTemp, inline, make, overlay } from "./gallery.js";

const WAITS = {
  SIFM_DoesItHold: "The light, the weakest cases and the pictures appear here after a run.",
  SIFM_ProtectImage: "How visible it is, and what it does not promise, stands here after a run.",
  SIFM_ResultsTable: "The table and the edits appear here after a run.",
  SIFM_ISRAggregate: "The table and the edits appear here after a run.",
  SIFM_ConsistencyReport: "The table and the edits that are disputed appear here after a run.",
  SIFM_ClipScore: "The table appears here after a run.",
  SIFM_MLLMJudge: "The edits with their verdicts appear here after a run.",
};
const HEIGHTS = { SIFM_MLLMJudge: 240, SIFM_ProtectImage: 440, SIFM_DoesItHold: 560 };
const STYLE = `
.sifm-box { position: relative; height: 100%; } /* so that a long table scrolls and does not stretch its node */
.sifm-text { position: absolute; inset: 0; box-sizing: border-box; overflow: auto; padding: 4px 8px; font: 12px/1.45 sans-serif; color: var(--fg-color, #ddd); background: var(--comfy-input-bg, #222); border-radius: 5px; user-select: text; cursor: auto; }
.sifm-text .sifm-toy { margin: 0 0 6px; padding: 5px 8px; border-radius: 4px; background: #b3261e; color: #fff; font-weight: bold; }
.sifm-light { height: 10px; border-radius: 5px; margin: 2px 0 6px; } .sifm-green { background: #3fa463; } .sifm-amber { background: #e0a030; } .sifm-red { background: #d9534f; }
.sifm-sides { float: left; width: min(100%, 340px); margin: 6px 14px 6px 0; } .sifm-sides + ul { display: flow-root; padding-left: 20px; } .sifm-text h4 { clear: both; } .sifm-sides input { width: 100%; } .sifm-sides img { width: 100%; }
.sifm-sides button { font: inherit; color: inherit; background: none; border: 1px solid var(--border-color, #555); border-radius: 5px; padding: 2px 8px; cursor: pointer; }
.sifm-text h4 { margin: 10px 0 2px; font-size: 12px; font-weight: bold; }
.sifm-text p, .sifm-text ul, .sifm-text small { color: var(--descrip-text, #999); } .sifm-text p, .sifm-text ul { margin: 6px 0; } .sifm-text ul { padding-left: 16px; }
.sifm-text table { border-collapse: collapse; margin: 4px 0 8px; }
.sifm-text td, .sifm-text th { padding: 2px 10px 2px 0; text-align: left; vertical-align: top; }
.sifm-text td { white-space: nowrap; } .sifm-text td.long { white-space: normal; min-width: 260px; }
.sifm-text th { font-weight: normal; color: var(--descrip-text, #999); border-bottom: 1px solid var(--border-color, #555); white-space: nowrap; }
`;

const MARKS = { best: "b", second: "u" };
const marked = ({ text, mark }) => (MARKS[mark] ? [make(MARKS[mark], { textContent: text })] : inline(text));

function cell(given) {
  const paper = given.paper && make("small", { textContent: ` (${given.paper})` });
  return make("td", { className: given.text.length > 40 ? "long" : "" }, ...marked(given), given.star ? "†" : "", paper || "");
}

function table({ head, rows, over }) {
  const above = over.map(([title, colSpan]) => make("th", { textContent: title, colSpan }));
  const heads = [...(above.length ? [make("tr", {}, make("th"), ...above)] : []), make("tr", {}, ...head.map((textContent) => make("th", { textContent })))];
  return make("table", {}, ...heads, ...rows.map((row) => make("tr", {}, ...row.map(cell))));
}

// The elements of sifm_core/report/document.py.
const DRAWN = {
  heading: ({ text }) => make("h4", { textContent: text }),
  items: ({ texts }) => make("ul", {}, ...texts.map((text) => make("li", {}, ...inline(text)))),
  text: ({ parts }) => make("p", {}, ...parts.flatMap(marked)),
  table,
};

// The edits that a node has judged, or those of the run that it has made.
async function edits({ sifm_cards: cards, sifm_run: runs }) {
  if (cards) return gallery(cards, inTemp);
  if (!runs) return "";
  const { records } = await ask(`/sifm/runs/${runs.at(-1)}`);
  return gallery(records, inRun(runs.at(-1)), attacked);
}

// The part in which a change is seen most, with the slider above it; at a click pixel by pixel.
function sides(pair) {
  const urls = pair.map(inTemp);
  const look = () => {
    const { close } = overlay(...compare(...urls, "whole"), make("button", { textContent: say("Close (Esc)"), onclick: () => close() }));
  };
  const button = make("button", { textContent: say("Before, then protected: look at 100%"), onclick: look });
  return make("div", { className: "sifm-sides" }, ...compare(...urls).reverse(), button);
}

// What a report says, each picture's sides under its heading.
function drawn(elements, pairs) {
  const left = [...pairs];
  return elements.flatMap((element) => [DRAWN[element.kind](element), ...(element.kind === "heading" && left.length ? [sides(left.shift())] : [])]);
}

app.registerExtension({
  name: "sifm.tables",
  setup() {
    document.head.append(make("style", { textContent: STYLE }));
  },
  nodeCreated(node) {
    if (!WAITS[node.comfyClass]) return;
    const height = HEIGHTS[node.comfyClass] ?? 120;
    const element = make("div", { className: "sifm-text" }, make("p", { textContent: say(WAITS[node.comfyClass]) }));
    element.addEventListener("wheel", (event) => event.stopPropagation()); // scrolls the table, not the canvas
    const widget = node.addDOMWidget("sifm_table", "sifm_table", make("div", { className: "sifm-box", style: `min-height: ${height}px` }, element), {
      serialize: false, hideOnZoom: false, hideInPanel: true, getMinHeight: () => height,
    });
    widget.serialize = false;
    shows(node, (output) => {
      const shown = drawn(output.sifm_document ?? [], output.sifm_sides ?? []);
      if (output.sifm_demonstration?.some(Boolean)) shown.unshift(make("p", { className: "sifm-toy", textContent: say("A demonstration by a toy. It protects nothing.") }));
      const light = output.sifm_light?.at(-1);
      if (light) shown.unshift(make("div", { className: `sifm-light sifm-${light}` }));
      element.replaceChildren(...shown);
      edits(output).then((cards) => element.replaceChildren(...shown, cards), (error) => element.append(make("p", { textContent: error.message })));
    });
  },
});
