// Nodes that end in a table show it: the Markdown that they give as text, made into tables, headings and paragraphs.
import { app } from "../../scripts/app.js";

const NODES = ["SIFM_ResultsTable", "SIFM_ISRAggregate", "SIFM_ConsistencyReport", "SIFM_ClipScore"];
const STYLE = `
.sifm-box { position: relative; height: 100%; min-height: 120px; } /* so that a long table scrolls and does not stretch its node */
.sifm-text { position: absolute; inset: 0; box-sizing: border-box; overflow: auto; padding: 4px 8px; font: 12px/1.45 sans-serif; color: var(--fg-color, #ddd); background: var(--comfy-input-bg, #222); border-radius: 5px; user-select: text; cursor: auto; }
.sifm-text h4 { margin: 10px 0 2px; font-size: 12px; }
.sifm-text p { margin: 6px 0; color: var(--descrip-text, #999); }
.sifm-text table { border-collapse: collapse; margin: 4px 0 8px; }
.sifm-text td, .sifm-text th { padding: 2px 12px 2px 0; text-align: left; vertical-align: top; }
.sifm-text td { white-space: nowrap; } .sifm-text td.long { white-space: normal; min-width: 260px; }
.sifm-text th { font-weight: normal; color: var(--descrip-text, #999); border-bottom: 1px solid var(--border-color, #555); }
`;

function make(tag, text = "") {
  return Object.assign(document.createElement(tag), { textContent: text });
}

const cells = (line) => line.trim().slice(1, -1).split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));

function row(tag, line) {
  const made = make("tr");
  made.append(...cells(line).map((text) => Object.assign(make(tag, text), { className: text.length > 40 ? "long" : "" })));
  return made;
}

function table(lines) {
  const made = make("table");
  made.append(row("th", lines[0]), ...lines.slice(2).map((line) => row("td", line))); // the second is the rule
  return made;
}

function blocks(markdown) {
  return markdown.split(/\n\s*\n/).filter((part) => part.trim()).map((part) => {
    if (part.startsWith("|")) return table(part.trim().split("\n"));
    return part.startsWith("#") ? make("h4", part.replace(/^#+\s*/, "")) : make("p", part);
  });
}

app.registerExtension({
  name: "sifm.tables",
  setup() {
    document.head.append(make("style", STYLE));
  },
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    const box = Object.assign(make("div"), { className: "sifm-box" });
    const element = Object.assign(make("div"), { className: "sifm-text" });
    box.append(element);
    element.append(make("p", "The table appears here after a run."));
    element.addEventListener("wheel", (event) => event.stopPropagation()); // scrolls the table, not the canvas
    const widget = node.addDOMWidget("sifm_table", "sifm_table", box, {
      serialize: false, hideOnZoom: false, getMinHeight: () => 120,
    });
    widget.serialize = false;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (output?.text) element.replaceChildren(...blocks(output.text.join("\n\n")));
    };
  },
});
