// Pictures with what judges say of them, in the sidebar and in nodes; and what both need to draw anything.
import { api } from "../../scripts/api.js";
import { make, overlay } from "./dom.js";

export { make, overlay };

const STYLE = `
.sifm-gallery { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 10px 28px; }
.sifm-cards { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 8px; margin: 4px 0; }
.sifm-cards figure { margin: 0; width: 88px; font-size: 11px; line-height: 1.35; overflow-wrap: anywhere; }
.sifm-cards img { width: 100%; display: block; margin-bottom: 2px; border: 3px solid transparent; border-radius: 4px; box-sizing: border-box; image-rendering: pixelated; }
.sifm-cards button { display: block; width: 100%; padding: 0; border: 0; background: none; cursor: zoom-in; }
.sifm-cards .failed img { border-color: #8c7bff; } .sifm-cards .unknown img { border: 3px dashed #888; }
.sifm-said { margin-top: 2px; padding: 1px 5px; border-left: 3px solid var(--said); border-radius: 3px; background: color-mix(in srgb, var(--said) 20%, transparent); }
.sifm-said small { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; opacity: .8; }
.sifm-works { --said: #3fa463; } .sifm-mismatch { --said: #e0862f; } .sifm-degraded { --said: #b06ae0; } .sifm-both { --said: #d9534f; } .sifm-unclear { --said: #888; }
.sifm-full { position: fixed; inset: 0; z-index: 9999; background: #111; color: #ddd; font: 15px/1.5 sans-serif; display: flex; flex-direction: column; align-items: center; justify-content: safe center; gap: 14px; padding: 20px; box-sizing: border-box; overflow: auto; }
.sifm-full button { font: inherit; color: inherit; background: #222; border: 1px solid #555; border-radius: 5px; padding: 3px 9px; cursor: pointer; }
.sifm-full button:hover { border-color: #6cb6ff; }
.sifm-full small { color: #999; max-width: 90ch; }
.slide { position: relative; } .slide img { display: block; } .slide img + img { position: absolute; inset: 0; height: 100%; }
.sifm-full .slide { width: min(40vw, 62vh); } .sifm-full input[type=range] { width: min(40vw, 62vh); }
.sifm-full .slide img { width: 100%; display: block; image-rendering: pixelated; }
.sifm-full .whole, .sifm-full .whole img { width: auto; }
`;
document.head.append(make("style", { textContent: STYLE }));

const MOST = 60; // cells that are drawn

// Text with `code`.
export function inline(text) {
  return text.split("`").map((part, i) => (i % 2 ? make("code", { textContent: part }) : part)).filter(Boolean);
}

// What the pack's own routes answer; with a body it is a POST.
export async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await api.fetchApi(path, options);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error ?? answer.statusText);
  return found;
}

// The address of a picture: of a run by its id, of a node by ComfyUI's name for a temporary file.
export const inRun = (run) => (id) => api.apiURL(`/sifm/runs/${run}/pictures/${id}`);
export const inTemp = (file) => api.apiURL(`/view?${new URLSearchParams(file)}`);

// Before and after, one over the other, with the slider that moves the border between them.
export function compare(before, after, kind = "") {
  const top = make("img", { src: after, alt: "after" });
  const range = make("input", { type: "range", min: 0, max: 100, value: 50, ariaLabel: "before and after" });
  const move = () => (top.style.clipPath = `inset(0 0 0 ${range.value}%)`);
  range.addEventListener("input", move);
  move();
  return [make("div", { className: `slide ${kind}` }, make("img", { src: before, alt: "before" }), top), range];
}

function slider(before, after, title, said) {
  const [slide, range] = compare(before, after);
  const { close } = overlay(make("div", { textContent: title }), slide, range,
    make("small", {}, ...said.map((text) => make("div", { textContent: text }))),
    make("button", { textContent: "Close (Esc)", onclick: () => close() }));
  range.focus();
}

// "gemini:gemini-3.8-flash" -> "gemini-3.8-flash", "openai:llava@http://..." -> "llava"
const short = (judge) => judge.replace(/^[^:]*:/, "").replace(/@.*$/, "");
const why = (verdict) => (verdict.state === "ok" ? verdict.reasons : `${verdict.state}: ${verdict.reasons}`);

function said(verdict) {
  const kind = verdict.word.includes(" and ") ? "both" : verdict.word;
  return make("div", { className: `sifm-said sifm-${kind}`, title: why(verdict) }, `${short(verdict.judge)}: ${verdict.word}`,
    kind === "unclear" ? make("small", { textContent: why(verdict) }) : null);
}

function card(edit, clean, url) {
  const agreed = { true: "edit failed", false: "edit works", null: "unclear" }[String(edit.failed)];
  const before = clean && clean !== edit ? clean.edited : edit.source;
  const title = `${edit.prompt}: ${before === edit.source ? "the picture" : "clean edit"}, then ${edit.method || "its edit"}`;
  const look = () => slider(url(before), url(edit.edited), title, edit.said.map((v) => `${short(v.judge)}: ${v.word}. ${why(v)}`));
  const image = make("img", { src: url(edit.edited), alt: `${edit.method}: ${agreed}`, loading: "lazy" });
  return make("figure", { className: edit.failed === true ? "failed" : edit.failed === null ? "unknown" : "" },
    make("button", { type: "button", title: `${agreed}; before and after`, onclick: look }, image),
    edit.method || "edit", ...edit.said.map(said));
}

// Where an edit of a run comes from.
export const attacked = ({ image, info }) => `${image}${info.purifier ? `, after ${info.purifier}` : ""}`;

// Edits that differ only in how the picture was protected stand beside their source. `url`: a picture's address;
// `place`: what else tells attacks apart, and how to say it.
export function gallery(edits, url, place = () => "") {
  const cells = new Map();
  for (const edit of edits) {
    const key = JSON.stringify([edit.source, edit.prompt, edit.editor, edit.seed, place(edit)]);
    cells.set(key, [...(cells.get(key) ?? []), edit]);
  }
  const drawn = [...cells.values()].slice(0, MOST).map((cell) => {
    const clean = cell.find((edit) => ["clean", "unprotected"].includes(edit.method));
    const source = make("figure", {}, make("img", { src: url(cell[0].source), alt: "source", loading: "lazy" }), "source");
    return make("div", {}, make("div", { textContent: `“${cell[0].prompt}”` }), make("small", { textContent: place(cell[0]) }),
      make("div", { className: "sifm-cards" }, source, ...cell.map((edit) => card(edit, clean, url))));
  });
  const more = cells.size - drawn.length;
  return make("div", { className: "sifm-gallery" }, ...drawn, more > 0 ? make("small", { textContent: `and ${more} more` }) : null);
}
