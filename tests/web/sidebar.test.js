import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { api } from "../../scripts/api.js";
import { app, settled } from "../../scripts/app.js";
import { make } from "./gallery.js";
import "./sidebar.js";

const BLOCK = { title: "miniature-ip2p", rates: { "attacked picture": ["clean", "SIFM"], ISR: ["0%", "62%"] }, failures: {}, categories: {}, distances: {} };
const RUN = { headline: "5 of 8 fail", reading: ["No `control` failed."], trust: ["conv finds 9 of 10"], blocks: [BLOCK, { ...BLOCK, title: "other" }], records: [] };
const CASES = [1, 2].map((i) => ({ case: `c${i}`, prompt: `p${i}`, source: `s${i}`, edited: `e${i}` }));

app.extensions["sifm.sidebar"].setup();

beforeEach(() => {
  document.body.replaceChildren();
  Object.assign(api, { asked: [], answers: {} });
  app.toasts.length = 0;
});

async function opened(runs) {
  api.answers["/sifm/runs"] = runs;
  const element = make("div");
  document.body.append(element);
  app.tabs[0].render(element);
  await settled();
  return element;
}

async function judging(answer = () => ({ ok: true })) {
  Object.assign(api.answers, { "/sifm/runs/r": RUN, "/sifm/runs/r/cases": { total: 3, cases: CASES }, "/sifm/annotations": answer });
  const element = await opened([{ id: "r", time: 0, methods: ["clean", "SIFM"], pictures: 1, records: 2, editors: ["m"] }]);
  element.all(".run")[0].click();
  await settled();
  const [name] = element.all("input"), start = element.all(".plain").at(-1);
  name.value = "Anna & Bo";
  start.click();
  await settled();
  return document.body.all(".sifm-full")[0];
}

const press = async (box, ...keys) => { for (const key of keys) { box.dispatch("keydown", { key }); await settled(); } };
const posted = () => api.asked.filter(([, options]) => options).map(([, options]) => JSON.parse(options.body));

test("runs are listed with what is in them, and an unreadable one with the reason", async () => {
  const element = await opened([
    { id: "a", time: 0, methods: ["clean", "SIFM", "MIST"], pictures: 1, records: 24, editors: ["m"] }, { id: "b", time: 0, error: "no database" }]);
  const [whole, torn] = element.all(".run").map((button) => button.textContent);
  assert.match(whole, /^SIFM, MIST.*: 1 picture, 24 attacks, m$/);
  assert.match(torn, /: no database$/);
  assert.ok((await opened([])).textContent.includes("None yet"));
});

test("a list that cannot be had is said, and nothing is drawn in its place", async () => {
  const element = await opened({ error: "another page may not ask this" });
  assert.deepEqual(app.toasts.map((toast) => toast.detail), ["another page may not ask this"]);
  assert.equal(element.textContent, "");
});

test("the list is drawn again after a run while it is shown, and a run's page stays", async () => {
  const element = await opened([]);
  api.answers["/sifm/runs"] = [{ id: "r", time: 0, methods: [], pictures: 2, records: 2, editors: [] }];
  api.heard.execution_success();
  await settled();
  assert.equal(element.all(".run").length, 1);
  api.answers["/sifm/runs/r"] = RUN;
  element.all(".run")[0].click();
  await settled();
  api.heard.execution_success();
  await settled();
  assert.ok(element.textContent.includes("5 of 8 fail"));
});

test("a run shows its tables, each block's, and once how far its judges can be trusted", async () => {
  api.answers["/sifm/runs/r"] = RUN;
  const element = await opened([{ id: "r", time: 0, methods: [], pictures: 1, records: 1, editors: [] }]);
  element.all(".run")[0].click();
  await settled();
  assert.deepEqual(element.all("table").map((table) => table.all("td").map((cell) => cell.textContent)), [["clean", "0%", "SIFM", "62%"], ["clean", "0%", "SIFM", "62%"]]);
  assert.equal(element.textContent.split("conv finds 9 of 10").length, 2);
  assert.equal(element.all("code")[0].textContent, "control");
});

test("a person answers with six keys, sees each case once, and nothing says how a picture was protected", async () => {
  const box = await judging();
  assert.equal(api.asked.at(-1)[0], "/sifm/runs/r/cases?annotator=Anna%20%26%20Bo");
  assert.ok(box.textContent.includes("2 of 3, as Anna & Bo") && box.textContent.includes("“p1”") && !/SIFM|clean/.test(box.textContent));
  assert.deepEqual(box.all("img").map((image) => image.src), ["/api/sifm/runs/r/pictures/s1", "/api/sifm/runs/r/pictures/e1"]);
  await press(box, "1", "5", "3", "6");
  assert.deepEqual(posted(), [
    { case: "c1", annotator: "Anna & Bo", semantic_mismatch: "yes", perceptual_degradation: "no" },
    { case: "c2", annotator: "Anna & Bo", semantic_mismatch: "?", perceptual_degradation: "?" }]);
  assert.ok(box.textContent.startsWith("All 3 edits are judged"));
  await press(box, "1", "4");
  assert.equal(posted().length, 2);
});

test("one goes back and answers anew; a key that is held answers once", async () => {
  const box = await judging();
  await press(box, "ArrowLeft");
  assert.ok(box.textContent.includes("“p1”"));
  await press(box, "2", "4", "ArrowLeft", "1");
  box.dispatch("keydown", { key: "4", repeat: true });
  await settled();
  assert.equal(posted().length, 1);
  assert.equal(box.all(".chosen").length, 1);
  await press(box, "5");
  assert.deepEqual(posted().map((answer) => [answer.case, answer.semantic_mismatch]), [["c1", "no"], ["c1", "yes"]]);
});

test("while an answer is under way nothing can be said of a case that nobody has seen", async () => {
  const box = await judging();
  for (const key of ["1", "4", "2", "5"]) box.dispatch("keydown", { key });
  await settled();
  assert.deepEqual(posted().map((answer) => answer.case), ["c1"]);
  assert.ok(box.textContent.includes("“p2”") && box.all(".chosen").length === 0);
});

test("an answer that was not kept is said, and its case stays", async () => {
  const box = await judging(() => ({ error: "disk full" }));
  await press(box, "1", "4");
  assert.deepEqual(app.toasts.map((toast) => toast.detail), ["disk full"]);
  assert.ok(box.textContent.includes("“p1”"));
  assert.equal(box.all(".chosen").length, 0);
});
