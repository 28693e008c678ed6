import assert from "node:assert/strict";
import { test } from "node:test";
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import "./refused.js";
import "./templates.js";

const refusal = (input, sentence, type = "custom_validation_failed") => ({ type, details: `${input} - ${sentence}` });

test("what stops a graph is said once, by the node's title, and goes with the next try", async () => {
  app.graph = { getNodeById: (id) => ({ 4: { title: "Protect Image" } })[id] };
  api.refused = {
    4: { class_type: "SIFM_ProtectImage", errors: [refusal("against", "fetch: it"), refusal("demonstration", "fetch: it")] },
    5: { class_type: "SIFM_DoesItHold", errors: [refusal("against", "fetch: it"), refusal("image", "core says it", "required_input_missing")] },
    6: { class_type: "LoadImage", errors: [refusal("image", "not ours")] },
  };
  await assert.rejects(api.queuePrompt(0, {}), /refused/);
  assert.deepEqual(app.toasts.map(({ summary, detail, life }) => [summary, detail, life]), [["Protect Image", "fetch: it", undefined]]);
  api.refused = null;
  assert.deepEqual(await api.queuePrompt(0, {}), { prompt_id: "p" });
  assert.deepEqual(app.toasts, []);

  const { toast } = app.extensionManager, seen = new Map(); // as newer front ends have it
  toast.error = (title, { description }) => { seen.set(7, [title, description]); return 7; };
  toast.dismiss = (id) => seen.delete(id);
  api.refused = { 4: { class_type: "SIFM_ProtectImage", errors: [refusal("against", "choose: another")] } };
  await assert.rejects(api.queuePrompt(0, {}), /refused/);
  assert.deepEqual([...seen.values()], [["Protect Image", "choose: another"]]);
  api.refused = null;
  await api.queuePrompt(0, {});
  assert.equal(seen.size + app.toasts.length, 0);
});

test("the pack's templates stand in their order, those of others as they were", async () => {
  assert.deepEqual(await api.getWorkflowTemplates(), { other: ["b", "a"], sifm: ["1 a.app", "2 b", "10 c", "Paper"] });
});
