// The pack's templates in the template browser: in order, though the server lists files as its disk does; and opened
// where they begin, large enough to be read, though the front end would fit all of a wide graph into the window.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const pack = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-2));
const listed = api.getWorkflowTemplates;
api.getWorkflowTemplates = async function (...given) {
  const packs = await listed.apply(this, given);
  return { ...packs, ...(packs?.[pack] && { [pack]: packs[pack].toSorted((a, b) => a.localeCompare(b, "en", { numeric: true })) }) };
};

app.registerExtension({
  name: "sifm.templates",
  afterConfigureGraph() {
    const { ds, sifm_opens_here: here } = (app.rootGraph ?? app.graph)?.extra ?? {};
    if (here && ds) Object.assign(app.canvas.ds, { scale: ds.scale, offset: [...ds.offset] });
  },
});
