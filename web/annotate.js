// People as judges, in the sidebar and on the page of `sifm annotate`: nothing says how a picture was protected.
import { make, overlay } from "./dom.js";

const QUESTIONS = [
  ["semantic_mismatch", "Does the edit miss the instruction?", { 1: "yes", 2: "no", 3: "?" }],
  ["perceptual_degradation", "Is it visibly degraded?", { 4: "yes", 5: "no", 6: "?" }],
];

// Shows the cases one after the other over the page: `picture(id)` is an address, `save(answer)` keeps one answer and
// rejects where it could not, `alarm(error)` says so; `after`: what to do when all are judged; `say(text)`: in the page's
// language.
export function judging({ total, cases }, { annotator, picture, save, alarm, after = "", say = (text) => text }) {
  const { box, close } = overlay();
  let at = 0, said = {}, busy = false; // while an answer is under way nobody has seen the next case
  const draw = () => {
    if (at >= cases.length) {
      return box.replaceChildren(make("div", { textContent: `All ${total} edits are judged. ${after}` }),
        make("button", { textContent: say("Close (Esc)"), onclick: close }));
    }
    const { prompt, source, edited } = cases[at];
    const rows = QUESTIONS.map(([key, question, words]) => make("div", { className: "row" }, make("span", { textContent: say(question) }),
      ...Object.entries(words).map(([digit, word]) => make("button", {
        className: said[key] === word ? "chosen" : "", onclick: () => choose(key, word),
      }, make("kbd", { textContent: digit }), ` ${say(word === "?" ? "cannot say" : word)}`))));
    box.replaceChildren(
      make("small", { textContent: `${total - cases.length + at + 1} of ${total}, as ${annotator}` }),
      make("div", { textContent: `“${prompt}”`, style: "font-size: 20px" }),
      make("div", { className: "pair" },
        make("figure", { style: "margin: 0" }, make("img", { src: picture(source), alt: "before" }), make("div", { textContent: say("before") })),
        make("figure", { style: "margin: 0" }, make("img", { src: picture(edited), alt: "after" }), make("div", { textContent: say("after") }))),
      ...rows,
      make("small", {}, "Keys ", make("kbd", { textContent: "1" }), " to ", make("kbd", { textContent: "6" }), ", ", make("kbd", { textContent: "←" }), " back, ", make("kbd", { textContent: "Esc" }), " stop; answers are kept."));
    box.focus();
  };
  const choose = async (key, word) => {
    if (busy) return;
    said[key] = word;
    draw();
    if (QUESTIONS.some(([name]) => !said[name])) return;
    busy = true;
    try { await save({ case: cases[at].case, annotator, ...said }); at += 1; } catch (error) { alarm(error); }
    busy = false;
    said = {};
    draw();
  };
  box.addEventListener("keydown", (event) => {
    if (busy || event.repeat) return; // a key that is held was meant for the case before
    for (const [key, , words] of QUESTIONS) if (words[event.key] && at < cases.length) choose(key, words[event.key]);
    if (event.key === "ArrowLeft" && at > 0) { at -= 1; said = {}; draw(); }
  });
  draw();
  return box;
}
