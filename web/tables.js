// Nodes that end in a table or in verdicts show them: the Markdown that they give as text, made into tables, headings
// and paragraphs, and below it the edits with what the judges say.
import { app } from "../../scripts/app.js";
import { ask, attacked, gallery, inRun, inTemp, inline, make } from "./gallery.js";

const WAITS = {
  SIFM_ResultsTable: "The table and the edits appear here after a run.",
  SIFM_ISRAggregate: "The table and the edits appear here after a run.",
  SIFM_ConsistencyReport: "The table and the edits that are disputed appear here after a run.",
  SIFM_ClipScore: "The table appears here after a run.",
  SIFM_MLLMJudge: "The edits with their verdicts appear here after a run.",
};
const STYLE = `
.sifm-box { position: relative; height: 100%; min-height: 120px; } /* so that a long table scrolls and does not stretch its node */
.sifm-text { position: absolute; inset: 0; box-sizing: border-box; overflow: auto; padding: 4px 8px; font: 12px/1.45 sans-serif; color: var(--fg-color, #ddd); background: var(--comfy-input-bg, #222); border-radius: 5px; user-select: text; cursor: auto; }
.sifm-text h4 { margin: 10px 0 2px; font-size: 12px; font-weight: bold; }
.sifm-text p, .sifm-text ul, .sifm-text small { color: var(--descrip-text, #999); } .sifm-text p, .sifm-text ul { margin: 6px 0; } .sifm-text ul { padding-left: 16px; }
.sifm-text table { border-collapse: collapse; margin: 4px 0 8px; }
.sifm-text td, .sifm-text th { padding: 2px 10px 2px 0; text-align: left; vertical-align: top; }
.sifm-text td { white-space: nowrap; } .sifm-text td.long { white-space: normal; min-width: 260px; }
.sifm-text th { font-weight: normal; color: var(--descrip-text, #999); border-bottom: 1px solid var(--border-color, #555); white-space: nowrap; }
`;

const cells = (line) => line.trim().slice(1, -1).split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));

const row = (tag, texts) => make("tr", {}, ...texts.map((text) => make(tag, { className: text.length > 40 ? "long" : "" }, ...inline(text))));

// A head whose title stands over several columns: only the first of them has a text.
function over(texts) {
  const made = row("th", texts), [corner, ...rest] = made.children;
  let last = corner;
  for (const cell of rest) {
    if (cell.textContent || last === corner) last = cell;
    else { last.colSpan += 1; cell.remove(); }
  }
  return made;
}

function table(lines) {
  const [head, , ...body] = lines.map(cells); // the second is the rule
  const titled = body.length && body[0].every((text) => !text || /^\*\*.*\*\*$/.test(text)) && !body[0][0];
  const heads = titled ? [over(head), row("th", body.shift())] : [row("th", head)];
  return make("table", {}, ...heads, ...body.map((texts) => row("td", texts)));
}

function blocks(markdown) {
  return markdown.split(/\n\s*\n/).map((part) => part.trim()).filter(Boolean).map((part) => {
    if (part.startsWith("|")) return table(part.split("\n"));
    if (part.startsWith("#")) return make("h4", {}, ...inline(part.replace(/^#+\s*/, "")));
    if (part.startsWith("- ")) return make("ul", {}, ...part.split("\n").map((line) => make("li", {}, ...inline(line.slice(2)))));
    return make("p", {}, ...inline(part));
  });
}

// The edits that a node has judged, or those of the run that it has made.
async function edits({ sifm_cards: cards, sifm_run: runs }) {
  if (cards) return gallery(cards, inTemp);
  if (!runs) return "";
  const { records } = await ask(`/sifm/runs/${runs.at(-1)}`);
  return gallery(records, inRun(runs.at(-1)), attacked);
}

app.registerExtension({
  name: "sifm.tables",
  setup() {
    document.head.append(make("style", { textContent: STYLE }));
  },
  nodeCreated(node) {
    if (!WAITS[node.comfyClass]) return;
    const element = make("div", { className: "sifm-text" }, make("p", { textContent: WAITS[node.comfyClass] }));
    element.addEventListener("wheel", (event) => event.stopPropagation()); // scrolls the table, not the canvas
    const widget = node.addDOMWidget("sifm_table", "sifm_table", make("div", { className: "sifm-box" }, element), {
      serialize: false, hideOnZoom: false, getMinHeight: () => (node.comfyClass === "SIFM_MLLMJudge" ? 240 : 120),
    });
    widget.serialize = false;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (!output) return;
      const shown = blocks((output.text ?? []).join("\n\n"));
      element.replaceChildren(...shown);
      edits(output).then((drawn) => element.replaceChildren(...shown, drawn), (error) => element.append(make("p", { textContent: error.message })));
    };
  },
});
