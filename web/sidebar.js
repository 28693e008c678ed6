// The sidebar tab: runs of Results Table with their tables and pictures, and people's blind judgement of them.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { judging } from "./annotate.js";
import { ask, attacked, gallery, inRun, inline, make } from "./gallery.js";
import { say } from "./words.js";

const STYLE = `
.sifm { padding: 10px 12px; font: 13px/1.45 sans-serif; color: var(--fg-color, #ddd); height: 100%; overflow: auto; box-sizing: border-box; }
.sifm h3 { margin: 14px 0 6px; font-size: 14px; }
.sifm .run, .sifm .plain { font: inherit; color: inherit; background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #555); border-radius: 5px; padding: 3px 9px; cursor: pointer; }
.sifm .run:hover, .sifm .plain:hover { border-color: #6cb6ff; }
.sifm input { font: inherit; color: inherit; background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #555); border-radius: 5px; padding: 3px 7px; }
.sifm .run { display: block; width: 100%; text-align: left; margin: 0 0 6px; }
.sifm small { color: var(--descrip-text, #999); }
.sifm code { overflow-wrap: anywhere; }
.sifm .wide { overflow-x: auto; margin-bottom: 8px; }
.sifm table { border-collapse: collapse; font-size: 12px; white-space: nowrap; }
.sifm td, .sifm th { padding: 2px 8px 2px 0; text-align: right; } .sifm td:first-child, .sifm th:first-child { text-align: left; }
.sifm th { color: var(--descrip-text, #999); font-weight: normal; border-bottom: 1px solid var(--border-color, #555); }
.sifm-full .pair { display: flex; gap: 18px; } .sifm-full .pair img { width: min(40vw, 62vh); image-rendering: pixelated; }
.sifm-full .chosen { border-color: #6cb6ff; background: #245; } .sifm-full .row { display: flex; gap: 10px; align-items: center; }
.sifm-full kbd { border: 1px solid #777; border-radius: 4px; padding: 0 5px; font-size: 12px; }
`;

function table(columns) {
  if (!Object.keys(columns).length) return "";
  const names = Object.keys(columns), rows = columns[names[0]].map((_, i) => names.map((name) => columns[name][i]));
  const head = make("tr", {}, ...names.map((name) => make("th", { textContent: name })));
  const lines = rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", { textContent: cell }))));
  return make("div", { className: "wide" }, make("table", {}, head, ...lines));
}

// ---- a run

async function show(place, id) {
  const run = await ask(`/sifm/runs/${id}`);
  const name = make("input", { type: "text", placeholder: say("your name"), maxLength: 40, size: 14, value: localStorage.getItem("sifm.annotator") ?? "" });
  const start = async () => {
    localStorage.setItem("sifm.annotator", name.value);
    try { await annotate(id, name.value); } catch (error) { alarm(error); }
  };
  const note = (text) => make("p", {}, make("small", {}, ...inline(text)));
  const trust = run.trust.length ? [make("b", { textContent: say("Can the judges be trusted?") }), ...run.trust.map(note)] : [];
  place.dataset.view = "run";
  place.replaceChildren(
    make("button", { className: "plain", textContent: say("← Runs"), onclick: () => list(place) }),
    make("p", { textContent: run.headline }),
    ...run.reading.map(note),
    ...run.blocks.flatMap((block, i) => [make("h3", { textContent: block.title }), table(block.rates), ...(i ? [] : trust),
      table(block.failures), table(block.categories), table(block.distances)]),
    make("h3", { textContent: say("Judge the edits yourself, blind") }),
    make("div", {}, name, " ", make("button", { className: "plain", textContent: say("Start"), onclick: start })),
    make("h3", { textContent: say("Pictures") }),
    make("p", {}, make("small", { textContent: say("A frame: all judges say that the edit failed. Click for before and after, with their reasons.") })),
    gallery(run.records, inRun(id), attacked));
}

async function list(place) {
  const runs = await ask("/sifm/runs");
  const some = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
  const about = (run) => run.error ?? `${some(run.pictures, "picture")}, ${some(run.records, "attack")}, ${run.editors.join(", ")}`;
  place.dataset.view = "list";
  place.replaceChildren(
    make("h3", { textContent: say("SIFM runs") }),
    ...runs.map((run) => make("button", { className: "run", onclick: () => show(place, run.id).catch(alarm) },
      make("div", { textContent: (run.methods ?? []).filter((m) => m !== "clean").join(", ") }),
      make("small", { textContent: `${new Date(1000 * run.time).toLocaleString()}: ${about(run)}` }))),
    ...(runs.length ? [] : [make("p", { textContent: say("None yet. A graph with a SIFM Results Table makes one.") })]));
}

const alarm = (error) => app.extensionManager.toast.add({ severity: "error", summary: "SIFM", detail: error.message, life: 6000 });

// ---- people as judges

async function annotate(run, annotator) {
  judging(await ask(`/sifm/runs/${run}/cases?annotator=${encodeURIComponent(annotator)}`), {
    annotator, alarm, say, picture: inRun(run), after: "Run the graph again to use your answers.",
    save: (answer) => ask("/sifm/annotations", answer),
  });
}

app.registerExtension({
  name: "sifm.sidebar",
  setup() {
    document.head.append(make("style", { textContent: STYLE }));
    app.extensionManager.registerSidebarTab({
      id: "sifm", icon: "pi pi-shield", title: "SIFM", tooltip: say("SIFM: runs and judgements"), type: "custom",
      render: (element) => {
        const place = make("div", { className: "sifm" });
        element.replaceChildren(place);
        list(place).catch(alarm);
      },
    });
    api.addEventListener("execution_success", () => {
      const place = document.querySelector(".sifm[data-view=list]");
      if (place) list(place).catch(alarm);
    });
  },
});
