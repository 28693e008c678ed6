// The page of `sifm annotate`: who are you, how far everybody is, and how far people agree.
import { judging } from "./judging.js";
import { make } from "./dom.js";

const place = document.getElementById("place");
const AXES = { semantic_mismatch: "misses the instruction", perceptual_degradation: "is degraded", success: "fails at all" };
const percent = (share) => (share === null ? "–" : `${Math.round(100 * share)}%`);
const number = (value) => (value === null ? "–" : value.toFixed(2));

async function ask(path, answer) {
  const options = answer && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(answer) };
  const came = await fetch(path, options);
  const found = await came.json();
  if (!came.ok) throw new Error(found.error ?? came.statusText);
  return found;
}

function table(titles, rows) {
  const line = (tag) => (cells) => make("tr", {}, ...cells.map((cell) => make(tag, { textContent: cell })));
  return make("table", {}, line("th")(titles), ...rows.map(line("td")));
}

async function draw(said = "") {
  const { total, people, axes } = await ask("agreement");
  const name = make("input", { type: "text", placeholder: "your name", maxLength: 40, value: localStorage.getItem("sifm.annotator") ?? "" });
  const start = async (event) => {
    event.preventDefault();
    localStorage.setItem("sifm.annotator", name.value);
    try {
      const box = judging(await ask(`cases?annotator=${encodeURIComponent(name.value)}`), {
        annotator: name.value, picture: (id) => `pictures/${id}`, save: (answer) => ask("annotations", answer),
        alarm: (error) => alert(error.message), after: "Thank you.",
      });
      new MutationObserver((_, watch) => { if (!box.isConnected) { watch.disconnect(); draw(); } }).observe(document.body, { childList: true });
    } catch (error) { draw(error.message); }
  };
  const done = Object.entries(people).map(([who, n]) => [who, `${n} of ${total}`]);
  const agreed = Object.entries(axes).map(([axis, of]) => [AXES[axis], percent(of.raw), number(of.kappa), number(of.alpha), of.answers]);
  place.replaceChildren(
    make("h1", { textContent: "Judge the edits" }),
    make("p", { textContent: `${total} edits, each beside its source, in an order of your own. Answers are kept at once: stop whenever you like.` }),
    make("form", { onsubmit: start }, name, " ", make("button", { textContent: "Start" })),
    make("p", { textContent: said }),
    ...(done.length ? [table(["who", "judged"], done)] : []),
    ...(done.length > 1 ? [make("h2", { textContent: "How far people agree" }), table(["an edit", "agree", "kappa", "alpha", "pairs"], agreed)] : []),
    make("p", {}, make("small", { textContent: "Nothing leaves this machine. The answers:" }), " ", make("a", { href: place.dataset.file, textContent: place.dataset.file, download: "" })));
  name.focus();
}

draw().catch((error) => place.replaceChildren(make("p", { textContent: error.message })));
