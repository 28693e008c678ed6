// ComfyUI's api and as much of a page as the extension touches: elements are a tree, and nothing is drawn.

class Element {
  constructor(tagName) {
    Object.assign(this, { tagName, childNodes: [], parent: null, style: {}, dataset: {}, attributes: {}, heard: {}, className: "" });
  }

  append(...items) {
    for (const item of items) {
      if (item instanceof Element) { item.remove(); item.parent = this; }
      this.childNodes.push(item instanceof Element ? item : String(item));
    }
  }

  replaceChildren(...items) { for (const child of this.children) child.parent = null; this.childNodes = []; this.append(...items); }

  remove() { if (this.parent) this.parent.childNodes = this.parent.childNodes.filter((child) => child !== this); this.parent = null; }

  get children() { return this.childNodes.filter((child) => child instanceof Element); }

  get textContent() { return this.childNodes.map((child) => child.textContent ?? child).join(""); }

  set textContent(text) { this.replaceChildren(text); }

  setAttribute(name, value) { this.attributes[name] = String(value); }

  addEventListener(kind, listener) { (this.heard[kind] ??= []).push(listener); }

  dispatch(kind, event = {}) { for (const listener of this.heard[kind] ?? []) listener({ stopPropagation() {}, ...event }); }

  click() { this.onclick?.(); }

  focus() { document.activeElement = this; }

  // Every element below that is of a tag or, ".name", of a class.
  all(what) {
    const is = (e) => (what.startsWith(".") ? e.className.split(" ").includes(what.slice(1)) : e.tagName === what);
    return this.children.flatMap((child) => [...(is(child) ? [child] : []), ...child.all(what)]);
  }
}

const create = (tag) => new Element(tag);
globalThis.document = {
  head: create("head"), body: create("body"), activeElement: null, createElement: create, createElementNS: (_, tag) => create(tag),
  querySelector: (selector) => document.body.all(".sifm").find((e) => selector.includes(`=${e.dataset.view}]`)) ?? null,
};
globalThis.localStorage = { kept: {}, getItem: (key) => localStorage.kept[key] ?? null, setItem: (key, value) => { localStorage.kept[key] = value; } };

export const api = {
  asked: [], // (path, options) of every request
  answers: {}, // path -> what is answered, or a function of the request's body
  heard: {},
  apiURL: (path) => `/api${path}`,
  async fetchApi(path, options) {
    api.asked.push([path, options]);
    const answer = api.answers[path.split("?")[0]];
    const body = typeof answer === "function" ? answer(options && JSON.parse(options.body)) : answer;
    return { ok: !body?.error, statusText: "", json: async () => body };
  },
  refused: null, // the node errors of what is queued
  async queuePrompt() {
    if (api.refused) throw Object.assign(new Error("refused"), { response: { node_errors: api.refused } });
    return { prompt_id: "p" };
  },
  async getWorkflowTemplates() { return { other: ["b", "a"], sifm: ["10 c", "Paper", "2 b", "1 a.app"] }; },
  addEventListener(kind, listener) { api.heard[kind] = listener; },
};
