// What nodes showed last comes back from the server when their workflow is opened again: after a change of tabs, a run
// that ended behind another tab, a reload or a restart. Nodes that draw something of their own say how with `shows`.
import { app } from "../../scripts/app.js";
import { ask } from "./gallery.js";

const drawn = new WeakMap(); // node -> when something was last drawn in it

// `draw(output)` on each run of the node, and for what the server or ComfyUI's history knows of it.
export function shows(node, draw) {
  const executed = node.onExecuted;
  node.onExecuted = function (output) {
    executed?.apply(this, arguments);
    if (!output) return;
    drawn.set(node, Date.now());
    draw(output);
  };
}

// The node of an id that execution knows: "7", or "4:7" within the subgraph of node 4.
export function found(id) {
  let graph = app.rootGraph ?? app.graph, node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById?.(Number(part)) ?? graph?.getNodeById?.(part) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

async function recall() {
  const asked = Date.now(), graph = app.rootGraph ?? app.graph;
  if (!graph?.id) return;
  const kept = await ask(`/sifm/shown/${graph.id}`);
  if ((app.rootGraph ?? app.graph) !== graph) return;
  for (const [id, output] of Object.entries(kept)) {
    const node = found(id);
    if (!node || (drawn.get(node) ?? 0) >= asked) continue; // a run was quicker
    node.onExecuted?.(output);
    if (output.images) app.nodeOutputs[id] ??= output;
  }
}

app.registerExtension({
  name: "sifm.shown",
  async afterConfigureGraph() { recall().catch(() => {}); },
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs ?? {})) {
      const node = found(id);
      if (node?.comfyClass?.startsWith("SIFM_")) node.onExecuted?.(output);
    }
  },
});
