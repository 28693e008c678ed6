import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { api } from "../../scripts/api.js";
import { ask, attacked, gallery, inRun, inTemp, inline, make, overlay } from "./gallery.js";

const edit = (changes = {}) => ({
  source: "s", edited: "e", prompt: "make it night", editor: "m", seed: 1, method: "SIFM", image: "p", info: {}, failed: true,
  said: [{ judge: "gemini:gemini-2.5-pro", state: "ok", reasons: "a cat", word: "mismatch" }], ...changes,
});
const url = (name) => `/pictures/${name}`;

beforeEach(() => { document.body.replaceChildren(); api.asked.length = 0; });

test("text of a report is text, and what stands between backticks is code", () => {
  const place = make("p", {}, ...inline("run `sifm doctor`, <img src=x> and **stars**"));
  assert.equal(place.textContent, "run sifm doctor, <img src=x> and **stars**");
  assert.deepEqual(place.children.map((child) => [child.tagName, child.textContent]), [["code", "sifm doctor"]]);
  assert.deepEqual(inline(""), []);
});

test("an element has its properties, its class and its children, but none that are null", () => {
  const made = make("a", { className: "b c", title: "d" }, "e", null, make("i", { textContent: "f" }));
  assert.deepEqual([made.className, made.title, made.textContent, made.childNodes.length], ["b c", "d", "ef", 2]);
});

test("addresses name a picture of a run by its id, and a file of ComfyUI's by its three names", () => {
  assert.equal(inRun("0123")("ab"), "/api/sifm/runs/0123/pictures/ab");
  assert.equal(inTemp({ filename: "a&b.png", subfolder: "sifm", type: "temp" }), "/api/view?filename=a%26b.png&subfolder=sifm&type=temp");
});

test("an answer that is an error is thrown in the server's words; a body is posted as JSON", async () => {
  api.answers = { "/sifm/runs": { error: "no such run" }, "/sifm/annotations": { ok: true } };
  await assert.rejects(ask("/sifm/runs"), { message: "no such run" });
  assert.deepEqual(await ask("/sifm/annotations", { case: "c" }), { ok: true });
  const [, options] = api.asked.at(-1);
  assert.deepEqual([options.method, options.headers["Content-Type"], JSON.parse(options.body)], ["POST", "application/json", { case: "c" }]);
  assert.equal(api.asked[0][1], undefined);
});

test("edits that differ only in their protection stand beside one source, others in places of their own", () => {
  const edits = [edit({ method: "clean", failed: false }), edit(), edit({ seed: 2 }), edit({ prompt: "add a hat" }), edit({ info: { purifier: "jpeg:75" } })];
  const drawn = gallery(edits, url, attacked);
  const cards = drawn.all(".sifm-cards");
  assert.deepEqual(cards.map((card) => card.all("figure").length), [3, 2, 2, 2]);
  assert.ok(drawn.textContent.includes("p, after jpeg:75"));
});

test("a card's frame says what all judges agree on, and its words who says what", () => {
  const words = [["mismatch", "mismatch"], ["mismatch and degraded", "both"], ["unclear", "unclear"], ["works", "works"]];
  for (const [word, kind] of words) {
    const [said] = gallery([edit({ said: [{ judge: "openai:llava@http://127.0.0.1:1/v1", state: "ok", reasons: "why", word }] })], url).all(".sifm-said");
    assert.deepEqual([said.className, said.title], [`sifm-said sifm-${kind}`, "why"]);
    assert.ok(said.textContent.startsWith(`llava: ${word}`));
  }
  const frames = [true, false, null].map((failed) => gallery([edit({ failed })], url).all("figure")[1].className);
  assert.deepEqual(frames, ["failed", "", "unknown"]);
  const [unclear] = gallery([edit({ failed: null, said: [{ judge: "gemini:m", state: "blocked", reasons: "safety", word: "unclear" }] })], url).all(".sifm-said");
  assert.ok(unclear.textContent.endsWith("blocked: safety"));
});

test("a card opens before and after: the clean edit where there is one, else the source", () => {
  const [, , card] = gallery([edit({ method: "clean", edited: "c" }), edit()], url).all("figure");
  card.all("button")[0].click();
  const [box] = document.body.all(".sifm-full");
  assert.deepEqual(box.all("img").map((image) => image.src), ["/pictures/c", "/pictures/e"]);
  assert.ok(box.textContent.includes("clean edit, then SIFM") && box.textContent.includes("gemini-2.5-pro: mismatch. a cat"));
  const [, top] = box.all("img"), [range] = box.all("input");
  range.value = 30;
  range.dispatch("input");
  assert.equal(top.style.clipPath, "inset(0 0 0 30%)");
  box.dispatch("keydown", { key: "Escape" });
  assert.deepEqual(document.body.children, []);
  gallery([edit()], url).all("button")[0].click();
  assert.equal(document.body.all("img")[0].src, "/pictures/s");
});

test("sixty cells are drawn, and how many more there are is said", () => {
  const drawn = gallery(Array.from({ length: 75 }, (_, seed) => edit({ seed })), url);
  assert.equal(drawn.all(".sifm-cards").length, 60);
  assert.ok(drawn.textContent.endsWith("and 15 more"));
  assert.ok(!gallery([edit()], url).textContent.includes("more"));
});

test("keys that an overlay takes do not reach the graph behind it", () => {
  let stopped = 0;
  const { box, close } = overlay("x");
  assert.equal(document.activeElement, box);
  box.dispatch("keydown", { key: "Delete", stopPropagation: () => { stopped += 1; } });
  assert.deepEqual([stopped, document.body.children.length], [1, 1]);
  close();
  assert.equal(document.body.children.length, 0);
});
