import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { api } from "../../scripts/api.js";
import { app, node, settled } from "../../scripts/app.js";
import "./sifm.js";
import "./tables.js";

// What sifm_core.report.document.data makes of one element of every kind.
const DOCUMENT = JSON.parse(readFileSync(new URL("document.json", import.meta.url)));

function created(extension, comfyClass) {
  const made = node(comfyClass);
  app.extensions[extension].nodeCreated(made);
  return made;
}

test("only the nodes that have something to show get a widget, and none of it is saved", () => {
  assert.equal(created("sifm.curve", "KSampler").widgets.length + created("sifm.tables", "SIFM_Immunize").widgets.length, 0);
  for (const [extension, kind] of [["sifm.curve", "SIFM_BaselineImmunize"], ["sifm.tables", "SIFM_ResultsTable"]]) {
    const [widget] = created(extension, kind).widgets;
    assert.deepEqual([widget.serialize, widget.options.serialize], [false, false]);
    assert.ok(widget.element.textContent.includes("after a run"));
  }
});

test("an immunize node shows its curves from left to right, and the last picture's figures", () => {
  const made = created("sifm.curve", "SIFM_Immunize"), before = [];
  const log = [{ grad: 1 }, { grad: 3 }, { grad: 2 }];
  made.onExecuted({ sifm_curve: [{ method: "other", loss: [9], log: [] }, { method: "sifm", loss: [4, 2, 0], log }], sifm_linf: [1, 8 / 255], sifm_seconds: [9, 1.25] });
  const [{ element }] = made.widgets;
  assert.match(element.textContent, /^sifm, changes of up to 8\/255, 3 steps, 1\.3 s, loss 4\.000 to 0\.000, gradient norm$/);
  made.onExecuted({ sifm_curve: [{ method: "m", loss: [1], log: [] }], sifm_linf: [0], sifm_seconds: [1], sifm_doctor: ["within 0.1%"] });
  assert.match(element.textContent, /, gradient checked \(point here\)$/);
  assert.equal(element.title, "within 0.1%");
  made.onExecuted({ sifm_curve: [{ method: "sifm", loss: [4, 2, 0], log }], sifm_linf: [8 / 255], sifm_seconds: [1.25] });
  const [gradient, loss] = element.all("polyline").map((line) => line.attributes.points);
  assert.equal(loss, "0.00,2.00 50.00,20.00 100.00,38.00");
  assert.equal(gradient, "0.00,38.00 50.00,2.00 100.00,20.00");
});

test("noise has no curve, and a flat one is drawn", () => {
  const made = created("sifm.curve", "SIFM_BaselineImmunize"), [{ element }] = made.widgets;
  made.onExecuted({ sifm_curve: [{ method: "random_noise", loss: [], log: [] }], sifm_linf: [7 / 255], sifm_seconds: [0.01] });
  assert.deepEqual([element.textContent, element.all("svg").length], ["random_noise, changes of up to 7/255, 0.0 s", 0]);
  made.onExecuted({ sifm_curve: [{ method: "m", loss: [5, 5], log: [{ grad: NaN }, {}] }], sifm_linf: [0], sifm_seconds: [1] });
  assert.deepEqual(element.all("polyline").map((line) => line.attributes.points), ["0.00,38.00 100.00,38.00"]);
});

test("what another extension does after a run is done all the same", () => {
  for (const [extension, kind] of [["sifm.curve", "SIFM_Immunize"], ["sifm.tables", "SIFM_ClipScore"]]) {
    const made = node(kind), seen = [];
    made.onExecuted = (output) => seen.push(output);
    app.extensions[extension].nodeCreated(made);
    made.onExecuted(undefined);
    made.onExecuted({});
    assert.deepEqual(seen, [undefined, {}]);
  }
});

test("every kind of element of a report is drawn, and its text is no markup", async () => {
  const made = created("sifm.tables", "SIFM_ConsistencyReport");
  made.onExecuted({ sifm_document: DOCUMENT });
  await settled();
  const [{ element: box }] = made.widgets, [element] = box.children;
  assert.deepEqual(element.children.map((child) => child.tagName), ["h4", "p", "ul", "table"]);
  const [heading, text, list, table] = element.children;
  assert.equal(heading.textContent, "<b>Title</b>");
  assert.deepEqual([text.textContent, text.all("b").length, text.all("code")[0].textContent], ["Best of run", 1, "run"]);
  assert.deepEqual(list.all("li").map((item) => item.textContent), ["one", "two"]);
  const [over, head, row] = table.children;
  assert.deepEqual(over.children.map((cell) => [cell.textContent, cell.colSpan]), [["", undefined], ["SIFM (miniature)", 2]]);
  assert.deepEqual(head.children.map((cell) => cell.textContent), ["", "PSNR", "ISR"]);
  assert.deepEqual(row.children.map((cell) => cell.textContent), ["clean", "31.2† (30.1)", "0%"]);
  assert.deepEqual([row.all("u").length, row.all("small").length], [1, 1]);
});

test("a node shows the edits of its own cards, or of the run that it made, or says why not", async () => {
  const record = { source: "s", edited: "e", prompt: "p", editor: "m", seed: 0, method: "SIFM", image: "i", info: {}, failed: true, said: [] };
  api.answers = { "/sifm/runs/last": { records: [record] }, "/sifm/runs/gone": { error: "no such run" } };
  const shown = async (output) => {
    const made = created("sifm.tables", "SIFM_MLLMJudge");
    made.onExecuted(output);
    await settled();
    return made.widgets[0].element;
  };
  const picture = { filename: "a.png", subfolder: "sifm", type: "temp" };
  const cards = await shown({ sifm_cards: [{ ...record, source: picture, edited: picture }] });
  assert.equal(cards.all("img")[1].src, "/api/view?filename=a.png&subfolder=sifm&type=temp");
  const run = await shown({ sifm_run: ["first", "last"] });
  assert.equal(run.all("img")[1].src, "/api/sifm/runs/last/pictures/e");
  assert.ok((await shown({ sifm_run: ["gone"] })).textContent.includes("no such run"));
});

test("each picture's sides stand under its heading, and open pixel by pixel", async () => {
  const made = created("sifm.tables", "SIFM_ProtectImage"), file = (filename) => ({ filename, subfolder: "sifm", type: "temp" });
  const report = [1, 2].flatMap((i) => [{ kind: "heading", text: `picture ${i}` }, { kind: "items", texts: ["said"] }]);
  made.onExecuted({ sifm_document: report, sifm_sides: [[file("a"), file("b")], [file("c"), file("d")]] });
  await settled();
  const [element] = made.widgets[0].element.children;
  assert.deepEqual(element.children.map((child) => child.tagName), ["h4", "div", "ul", "h4", "div", "ul"]);
  const second = element.all(".sifm-sides")[1];
  assert.deepEqual(second.all("img").map((image) => image.src.match(/filename=(.)/)[1]), ["c", "d"]);
  second.all("button")[0].click();
  assert.equal(document.body.all(".whole").length, 1);
});
