"""The shipped workflows, described. The paper's name its editors and settings and run on the miniature as well."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from blueprints import BLUEPRINTS
from layout import Graph, Node, Out
from my_model import MY_MODEL

HERE = Path(__file__).parent
FULL = ("photoguard_encoder", "photoguard_diffusion", "editshield", "ace", "sds", "mist", "semantic_attack")
ON_SD3 = ("photoguard_encoder", "photoguard_diffusion", "editshield", "semantic_attack")
TRANSFERRED = ("photoguard_encoder", "photoguard_diffusion", "semantic_attack")
TITLES = dict(zip(FULL, ("PhotoGE", "PhotoGD", "ED", "ACE", "SDS", "MIST", "SA"), strict=True))
LAMBDAS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)

SWITCH = (
    "**One switch**: *run_on* of **Editors and Judges**. *miniature* runs at once, on any computer, editor and judges "
    "alike; fewer **Iterations** make it quicker. *paper* takes {editors} from `models/diffusers` or the Hugging Face "
    "cache and two Gemini judges of today (the paper's own end on 1 December 2026), which need a key; what is missing "
    "is said before anything starts."
)
OWN_PICTURES = (
    "For a real editor write the name of your benchmark's `manifest.jsonl` (`sifm data` makes one) into **manifest** "
    "of Load Benchmark and raise **count**: until then the pictures are the miniature's, 64 px, drawn by a program."
)
TOY = "Figures on the miniature say nothing about real editors."
PROTECT = (
    "One budget, one number of steps and one seed for all methods. Random noise is the control: a method that does no "
    "better than noise of the same budget does nothing."
)
ATTACK = (
    "**Attack Plan** lists every picture, unprotected and protected, with its original instruction{unseen}. The "
    "attacker uses one seed: only the picture differs."
)
JUDGE = (
    "Two judges look at every edit alone: does it miss the instruction, is it degraded? An edit counts as failed only "
    "if both say so."
)
AGREE = "Raw agreement, and agreement beyond chance, for mismatch, degradation and the final verdict."
RESULT = (
    "**ISR**: share of failed edits. **net ISR**: it worked unprotected and failed protected. Mind the interval. The "
    "run is kept and shown in the sidebar; **Records Export** writes it to a file."
)
WIDE = 1320
"""Pixels of a table that shows original and unseen instructions side by side."""


class Study(Graph):
    """Parts that the paper's workflows share."""

    def start(self, title: str, text: str, *editors: str, count: int = 4) -> list[Out]:
        """Title, how to run it, and what all arms share; the editors, one or two of the paper's."""
        said = [
            f"**{title}**",
            text,
            SWITCH.format(editors=" and ".join(f"*{name}*" for name in editors)),
            OWN_PICTURES,
        ]
        self.group("1  Pictures, editor, settings", "\n\n".join([*said, TOY]), width=400)
        self.setup = self.add("SIFM_Setup", editor=editors[0], other_editor=(*editors, "none")[1])
        self.bench = self.add("SIFM_LoadBenchmark", count=count)
        self.picture, self.prompt = self.bench.image, self.bench.prompt
        loaded = [self.setup.editor, self.setup.other_editor][: len(editors)]
        self.eps = self.add("PrimitiveFloat", "Budget (eps)", value=0.03).FLOAT
        self.steps = self.add("PrimitiveInt", "Iterations", value=100).INT
        self.seed = self.add("PrimitiveInt", "Seed", value=0).INT
        return loaded

    def sifm(self, editor: Out, title: str = "SIFM", **options: Any) -> Out:
        return self.add("SIFM_Immunize", title, **self._budget(editor), **options).protection

    def baseline(self, editor: Out, method: str, title: str = "", **options: Any) -> Out:
        made = self._budget(editor) | {"method": method} | options
        return self.add("SIFM_BaselineImmunize", title or TITLES[method], **made).protection

    def control(self, editor: Out) -> Out:
        """Noise of the same budget, in a column of its own."""
        self.column()
        return self.baseline(editor, "random_noise", "Noise control", method__pattern="block8")

    def methods(
        self, editor: Out, baselines: Sequence[str], title: str = "2  Protect", note: str = PROTECT
    ) -> list[Out]:
        """The baselines in columns of two, then noise, then SIFM."""
        self.group(title, note)
        arms: list[Out] = []
        for i, method in enumerate(baselines):
            if i and i % 2 == 0:
                self.column()
            arms.append(self.baseline(editor, method))
        if arms:
            self.column()
        arms.append(self.baseline(editor, "random_noise", "Noise control", method__pattern="block8"))
        return [*arms, self.sifm(editor)]

    def attack(self, editor: Out, arms: list[Out], title: str = "3  Attack", unseen: bool = True, **plan: Any) -> Node:
        said = " and five unseen ones" if unseen else ""
        self.group(title, ATTACK.format(unseen=said))
        bench = self.bench
        given = {"image": bench.image, "prompt": bench.prompt, "category": bench.category, "id": Out(bench, "id")}
        given |= {"unseen": bench.unseen} if unseen else {}
        self.plan = self.add("SIFM_AttackPlan", protections=arms, **given, **plan)
        self.edit = self.attacker(editor)
        return self.edit

    def attacker(self, editor: Out) -> Node:
        attack = {"image": self.plan.image, "prompt": self.plan.prompt, "purifier": self.plan.purifier}
        return self.add("SIFM_AttackerEdit", editor=editor, seed=self.seed, **attack)

    def judges(self, title: str = "4  Judge", note: str = JUDGE) -> list[Out]:
        self.group(title, note)
        return [self.judge(f"Judge {i}", chosen=Out(self.setup, f"judge_{i}")) for i in (1, 2)]

    def judge(self, title: str, **chosen: Any) -> Out:
        case = {"source": self.plan.source, "prompt": self.plan.prompt, "edited": self.edit.edited}
        return self.add("SIFM_MLLMJudge", title, **case, **chosen).verdicts

    def results(
        self,
        judges: list[Out],
        title: str = "5  Result",
        *,
        grid: bool = True,
        export: bool = True,
        width: int = 900,
        **given: Any,
    ) -> Node:
        self.group(title, RESULT, width=width)
        shown = {"attack": self.plan.attack, "edit": self.edit.edit, "judges": judges}
        table = self.add("SIFM_ResultsTable", **shown, **given)
        if grid:
            self.add("SIFM_ComparisonGrid", records=table.records, rows=6, side=160)
        if export:
            self.add("SIFM_RecordsExport", records=table.records, format="csv")
        return table

    def _budget(self, editor: Out) -> dict[str, Any]:
        wires = {"image": self.picture, "editor": editor, "prompt": self.prompt}
        return wires | {"eps": self.eps, "steps": self.steps, "seed": self.seed}


def protect_my_image(g: Graph) -> None:
    g.group(
        "1  Your picture",
        "**Protect my image.** 1. Choose your picture. 2. Choose the editor that you fear, and how strong. 3. **Run**."
        "\n\nHow long it takes stands on the node as soon as that is known; then what was done, in words, and before "
        "and after at 100%, one over the other. The protected PNG and its certificate lie in ComfyUI's `output/SIFM` "
        "folder: publish that file.\n\nWhat is not on this computer says so in the list, with its size and where it "
        "comes from. The *miniatures* that come with the pack are toys for learning: none protects a picture of yours."
        "\n\nA PNG with transparency: connect **MASK** and set *mask_marks* (among the advanced settings of Protect "
        "Image) to *what is transparent*.",
        width=420,
    )
    image = g.add("LoadImage", "Your picture", image="example.png")
    g.group(
        "2  Protect and look", "A setting in doubt stays as it is. *normal* is made to survive an upload.", width=640
    )
    done = g.add("SIFM_ProtectImage", image=image.IMAGE, against="instruct-pix2pix")
    g.app([(image, "image"), (done, "against"), (done, "strength"), (done, "words")], [done])


def does_it_hold(g: Graph) -> None:
    g.group(
        "1  Your pictures",
        "**Does my protection hold?** Choose the protected file and its original, and the editor that attacks, then "
        "run. It is attacked with what people ask, as it is, after uploads and after mild cleaning. The light is green "
        "only with evidence. Without judges there is none: look at the pictures, the weakest first.\n\nJudges: connect "
        "**judge_1** and **judge_2** of *Editors and Judges*.",
        width=420,
    )
    protected = g.add("LoadImage", "The protected picture", image="example.png")
    source = g.add("LoadImage", "Its original", image="example.png")
    g.group("2  The answer", "What was not tried is not answered. Test again when editors change.", width=760)
    g.add("SIFM_DoesItHold", image=protected.IMAGE, source=source.IMAGE, against="instruct-pix2pix")


def immunize_my_image(g: Graph) -> None:
    g.group(
        "1  What to protect, against what",
        "**Immunize, every setting in your hands.** Choose your picture and an editor that is on this computer, then "
        "run. The protected PNG lies in ComfyUI's `output/SIFM` folder. *3 Protect and test* compares a protection "
        "with plain noise.",
    )
    image = g.add("LoadImage", "Your picture", image="example.png")
    editor = g.add("SIFM_LoadEditor", "Editor to protect against", editor="instruct-pix2pix")
    g.group(
        "2  Immunize",
        "**prompt**: an instruction that an attacker might give. **eps**: how much any pixel may change. More: "
        "*Show Advanced* in the node's menu. **Feature Hook** decides which inner layers are disturbed.",
        width=400,
    )
    hook = g.add("SIFM_FeatureHook", editor=editor.editor)
    made = {"image": image.IMAGE, "editor": editor.editor, "hook": hook.hook}
    immunized = g.add("SIFM_Immunize", prompt="make it night", **made)
    g.group(
        "3  Save and look",
        "The file is what protects: it is written without loss, read back and checked. Converting it to JPEG or "
        "resizing it weakens or removes the protection.",
        width=420,
    )
    g.add("SIFM_SaveProtected", protection=immunized.protection)
    g.add("PreviewImage", "Perturbation, amplified", images=immunized.perturbation)
    g.add("PreviewAny", "Layers that are hooked", source=hook.matches, height=200)


def protect_and_test(g: Graph) -> None:
    g.group(
        "1  Pictures, editor, seed",
        "**Protect and test.** Does the protection work, and is it better than plain noise? Every picture of the "
        "benchmark is protected, attacked and judged; the table at the right puts them together.\n\nThe pictures are "
        "drawn by a program; what is wooden, knitted or of brick shows in a fine texture alone, which the editor must "
        "read. Try the built-in *miniature-hq-edit* and *miniature-sd3* too. Figures on these toys say nothing about "
        "real editors: for those, load a real editor, your own pictures and real judges.",
    )
    bench = g.add("SIFM_LoadBenchmark")
    editor = g.add("SIFM_LoadEditor").editor
    seed = g.add("PrimitiveInt", "Attacker's seed", value=0)
    g.group("2  Protect", "SIFM and, as a control, random noise of the same budget. A method must beat its control.")
    shared = {"editor": editor, "prompt": bench.prompt}
    sifm = g.add("SIFM_Immunize", image=bench.image, **shared)
    noise = {"method": "random_noise", "method__pattern": "block8"}
    control = g.add("SIFM_BaselineImmunize", "Noise control", image=bench.image, **shared, **noise)
    g.group(
        "3  Attack", "One prompt, one seed, three pictures: unprotected, protected, control. Only the picture differs."
    )
    clean, protected, noisy = (
        g.add("SIFM_AttackerEdit", f"Attack the {name}", image=image, seed=seed.INT, **shared).edited
        for name, image in {
            "unprotected picture": bench.image,
            "protected picture": sifm.protected,
            "noise control": control.protected,
        }.items()
    )
    g.group(
        "4  Measure and judge",
        "Two judges look at every edit: does it miss the instruction, is it degraded? Metrics only say how far two "
        "edits are apart.",
    )
    metrics = [
        g.add("SIFM_PairwiseMetrics", f"{name} edit against unprotected edit", reference=clean, distorted=edit).metrics
        for name, edit in {"Protected": protected, "Control": noisy}.items()
    ]
    case = {"source": bench.image, "prompt": bench.prompt, "edited": protected}
    judges = [
        g.add("SIFM_MLLMJudge", f"Judge {i}", judge__model=model, clean_edit=clean, control_edit=noisy, **case)
        for i, model in enumerate(("conv", "patch"), 1)
    ]
    g.group(
        "5  Result",
        "An edit counts as failed only if both judges say so. **unprotected** is the floor: how often the editor fails "
        "by itself. **net ISR**: it worked unprotected and failed protected. A few pictures are an anecdote: mind the "
        "interval.",
        width=1060,
    )
    given = {"judges": [judge.verdicts for judge in judges], "metrics": metrics[0], "control_metrics": metrics[1]}
    g.add("SIFM_ISRAggregate", **given)
    g.group("6  Look", "The same pictures, side by side.")
    for title, image in {"Source": bench.image, "Protected": sifm.protected, "Amplified": sifm.perturbation}.items():
        g.add("PreviewImage", title, images=image)
    g.column()
    for title, image in {"Source": clean, "Protected": protected, "Noise control": noisy}.items():
        g.add("PreviewImage", f"Edit: {title}", images=image)


def test_my_image(g: Study) -> None:
    g.group(
        "1  Your picture and editor",
        "**Test my image.** Is *your* picture safe from *your* editor, also when the attacker asks for something that "
        "the protection was not made for?\n\nChoose the picture, the instruction, the editor, and judges that can see: "
        "a vision model on an Ollama, vLLM or LM Studio server, or Gemini. The built-in *miniature* editors are toys "
        "that know small drawn pictures, and refuse yours.",
        width=400,
    )
    image = g.add("LoadImage", "Your picture", image="example.png")
    prompt = g.add("PrimitiveStringMultiline", "Instruction to protect against", value="make it night", height=150)
    editor = g.add("SIFM_LoadEditor", editor="instruct-pix2pix").editor
    g.eps = g.add("PrimitiveFloat", "Budget (eps)", value=0.03).FLOAT
    g.steps = g.add("PrimitiveInt", "Iterations", value=100).INT
    g.seed = g.add("PrimitiveInt", "Seed", value=0).INT
    g.picture, g.prompt = image.IMAGE, prompt.STRING
    arms = g.methods(editor, [])
    g.group("3  Attack", ATTACK.format(unseen=" and with unseen ones"))
    given = {"prompt": prompt.STRING, "image": image.IMAGE}
    unseen = g.add(
        "SIFM_UnseenPrompts", category="landscape", count=3, seed=28, **given
    )  # short ones: a toy reads 16 tokens
    g.plan = g.add("SIFM_AttackPlan", image=image.IMAGE, prompt=prompt.STRING, unseen=unseen.prompts, protections=arms)
    g.edit = g.attacker(editor)
    g.group("4  Judge", JUDGE)
    models = ("llava", "qwen2.5vl")
    judges = [g.judge(f"Judge {i}", judge="openai", judge__model=model) for i, model in enumerate(models, 1)]
    g.results(judges, width=WIDE)


def purification(g: Study) -> None:
    (editor,) = g.start(
        "Does the protection survive?",
        "An attacker may compress, scale, blur or redraw a picture before editing it. Every protection is attacked "
        "after each of these, and so is the unprotected picture.",
        "instruct-pix2pix",
    )
    arms = g.methods(editor, ["photoguard_encoder"])
    g.group("3  One purifier, looked at", "What a purifier does to a protected picture; try others, or a chain.")
    picture = Out(arms[-1].node, "protected")
    shown = g.add("SIFM_Purify", image=picture, editor=editor, purifier="diffpure", purifier__strength=0.375)
    g.add("PreviewAny", "What was done", source=shown.chain, height=140)
    g.column()
    g.add("PreviewImage", "Protected", images=picture)
    g.add("PreviewImage", "Purified", images=shown.image)
    chains = "none\njpeg:75\nresize:0.5\ngaussian_noise:0.05\nadverse_cleaner\nvae_round_trip"
    g.attack(editor, arms, "4  Attack", unseen=False, purifiers=chains)
    g.group("5  Judge", JUDGE)
    judges = [g.judge(f"Judge {i}", chosen=Out(g.setup, f"judge_{i}")) for i in (1, 2)]
    g.results(judges, "6  Result", width=WIDE)


def comparison(paper: str, title: str, text: str, editor: str, baselines: Sequence[str]) -> Callable[[Study], None]:
    def build(g: Study) -> None:
        (loaded,) = g.start(title, text, editor)
        g.attack(loaded, g.methods(loaded, baselines))
        g.results(g.judges(), paper=paper, width=WIDE)

    return build


def transfer(g: Study) -> None:
    one, other = g.start(
        "Table V: transfer",
        "Pictures are protected against one editor and attacked with another, both ways. Above: made on "
        "InstructPix2Pix, attacked with Stable Diffusion 3; below in the row: the other way round.",
        "instruct-pix2pix",
        "sd3-medium",
    )
    ways = {"InstructPix2Pix to SD3": (one, other), "SD3 to InstructPix2Pix": (other, one)}
    for i, (name, (source, target)) in enumerate(ways.items()):
        a, b, c, d = (f"{n + 4 * i}  " for n in (2, 3, 4, 5))
        arms = g.methods(source, TRANSFERRED, f"{a}Protect: {name}")
        g.attack(target, arms, f"{b}Attack: {name}", unseen=False)
        g.results(
            g.judges(f"{c}Judge: {name}"),
            f"{d}Result: {name}",
            grid=False,
            export=False,
            paper="none" if i else "table5",
        )


def variants(
    paper: str, title: str, text: str, editor: str, note: str, options: Mapping[str, Mapping[str, Any]]
) -> Callable[[Study], None]:
    def build(g: Study) -> None:
        (loaded,) = g.start(title, text, editor)
        g.group("2  Protect", note)
        arms = []
        for i, (name, chosen) in enumerate(options.items()):
            if i:
                g.column()
            arms.append(g.sifm(loaded, name if name == "SIFM" else f"SIFM: {name}", **chosen))
        arms.append(g.control(loaded))
        g.attack(loaded, arms, unseen=False, names="\n".join([*options, "noise"]))
        g.results(g.judges(), paper=paper)

    return build


def layers_and_timesteps(g: Study) -> None:
    (editor,) = g.start(
        "Layers and timesteps",
        "Which inner layers, at which timesteps? The paper leaves both open. Each Feature Hook lists what it matches.",
        "instruct-pix2pix",
    )
    g.group("2  Protect", "Layers with ten timesteps, then the deep layers early, in the middle and late; last noise.")
    arms = []
    choices = [
        ("deep", "10"),
        ("mid", "10"),
        ("last", "10"),
        ("all", "10"),
        ("deep", "early"),
        ("deep", "mid"),
        ("deep", "late"),
    ]
    for i, (layers, times) in enumerate(choices):
        if i:
            g.column()
        chosen = {"layers": layers, "timesteps": times, "aggregation": "per_layer"}
        hook = g.add("SIFM_FeatureHook", f"{layers}, {times}", editor=editor, **chosen)
        arms.append(g.sifm(editor, hook=hook.hook))
    arms.append(g.control(editor))
    names = [f"{layers}, {times}" for layers, times in choices]
    g.attack(editor, arms, unseen=False, names="\n".join([*names, "noise"]))
    g.results(g.judges())


def consistency(g: Study) -> None:
    (editor,) = g.start(
        "Table I: do judges and people agree?",
        "Edits of several methods are judged by two models and by people: run once, judge the edits in the sidebar as "
        "*anna*, *ben* and *chen* without seeing the method, and run again.",
        "instruct-pix2pix",
    )
    g.attack(editor, g.methods(editor, ["photoguard_encoder"]))
    models = g.judges()
    g.column()
    people = [g.judge(name, judge="human", judge__model=name.lower()) for name in ("Anna", "Ben", "Chen")]
    g.results(models, grid=False)
    g.group("6  Agreement", AGREE, width=900)
    g.add("SIFM_ConsistencyReport", models=models, people=people, attack=g.plan.attack)


def clip(g: Study) -> None:
    (editor,) = g.start(
        "Fig. 3: CLIP is no judge",
        "How well do the unedited picture and its edit fit the instruction in CLIP's eyes? Where it prefers the "
        "unedited picture, a CLIP score would call a good edit a failure.",
        "instruct-pix2pix",
    )
    g.group("2  Edit", "The plain edit, without any protection.")
    wires = {"image": g.bench.image, "prompt": g.bench.prompt, "editor": editor, "seed": g.seed}
    edit = g.add("SIFM_AttackerEdit", **wires)
    g.add("PreviewImage", "Edits", images=edit.edited)
    g.group("3  Ask CLIP", "Needs a CLIP model in the Hugging Face cache; without it the table says so.", width=900)
    g.add("SIFM_ClipScore", source=g.bench.image, edited=edit.edited, text=g.bench.prompt)


def qualitative(g: Study) -> None:
    editors = g.start(
        "Fig. 4: pictures",
        "Source, edit, protected picture and its edit, method by method, on HQ-Edit and Stable Diffusion 3.",
        "hq-edit",
        "sd3-medium",
        count=2,
    )
    for i, (name, editor) in enumerate(zip(("HQ-Edit", "Stable Diffusion 3"), editors, strict=True)):
        a, b, c, d = (f"{n + 4 * i}  " for n in (2, 3, 4, 5))
        arms = g.methods(editor, ["photoguard_encoder", "semantic_attack"], f"{a}Protect: {name}")
        g.attack(editor, arms, f"{b}Attack: {name}", unseen=False)
        g.results(g.judges(f"{c}Judge: {name}"), f"{d}Result: {name}", export=False)


OBJECTIVES = {"dist only": {"objective": "dist"}, "norm only": {"objective": "norm"}, "SIFM": {"objective": "full"}}
GRAPHS: dict[str, tuple[type[Graph], Callable[[Any], None]]] = {
    "protect_my_image": (Graph, protect_my_image),
    "does_it_hold": (Graph, does_it_hold),
    "immunize_my_image": (Graph, immunize_my_image),
    "protect_and_test": (Graph, protect_and_test),
    "test_my_image": (Study, test_my_image),
    "purification_robustness": (Study, purification),
    "paper_table1_consistency": (Study, consistency),
    "paper_table2_sd3": (
        Study,
        comparison(
            "table2",
            "Table II: Stable Diffusion 3",
            "Methods against each other at one budget, on the original and five unseen instructions.",
            "sd3-medium",
            ON_SD3,
        ),
    ),
    "paper_table3_instruct_pix2pix": (
        Study,
        comparison(
            "table3",
            "Table III: InstructPix2Pix",
            "Methods against each other at one budget, on the original and five unseen instructions.",
            "instruct-pix2pix",
            FULL,
        ),
    ),
    "paper_table4_hq_edit": (
        Study,
        comparison(
            "table4",
            "Table IV: HQ-Edit",
            "Methods against each other at one budget, on the original and five unseen instructions.",
            "hq-edit",
            FULL,
        ),
    ),
    "paper_table5_transfer": (Study, transfer),
    "paper_table6_objective": (
        Study,
        variants(
            "table6",
            "Table VI: what the objective's parts do",
            "SIFM with the distance alone, the norm alone, and both.",
            "sd3-medium",
            "Distance alone starts from noise: at the clean picture it has no gradient. Random noise is the control.",
            OBJECTIVES,
        ),
    ),
    "paper_table7_lambda": (
        Study,
        variants(
            "table7",
            "Table VII: lambda",
            "SIFM with seven weights of the distance, from 0.001 to 1000.",
            "sd3-medium",
            "Only **lam** differs. Random noise of the same budget is the control.",
            {f"lambda {lam:g}": {"lam": lam} for lam in LAMBDAS},
        ),
    ),
    "paper_figure3_clip": (Study, clip),
    "paper_figure4_pictures": (Study, qualitative),
    "layers_and_timesteps": (Study, layers_and_timesteps),
    **{name: (Graph, build) for name, (_, build) in MY_MODEL.items()},
}
"""Workflow -> how it is made."""
FILES = {
    "protect_my_image": "1 Protect my image.app",
    "does_it_hold": "2 Does my protection hold",
    "protect_and_test": "3 Protect and test, with a noise control",
    "test_my_image": "4 Test my image, also with unseen instructions",
    "immunize_my_image": "4 Immunize my image, every setting",
    "purification_robustness": "5 Does it survive compression and cleaning",
    "layers_and_timesteps": "6 Layers and timesteps",
    **{name: f"7 Protect against my model, {title}" for name, (title, _) in MY_MODEL.items()},
    "paper_table1_consistency": "Paper table 1, do judges and people agree",
    "paper_table2_sd3": "Paper table 2, methods on Stable Diffusion 3",
    "paper_table3_instruct_pix2pix": "Paper table 3, methods on InstructPix2Pix",
    "paper_table4_hq_edit": "Paper table 4, methods on HQ-Edit",
    "paper_table5_transfer": "Paper table 5, transfer between editors",
    "paper_table6_objective": "Paper table 6, parts of the objective",
    "paper_table7_lambda": "Paper table 7, lambda",
    "paper_figure3_clip": "Paper figure 3, CLIP is no judge",
    "paper_figure4_pictures": "Paper figure 4, pictures side by side",
}
"""Workflow -> its file, whose name is all that the template browser shows of it, in the browser's order."""
FILES = {name: title for name, title in FILES.items() if name in GRAPHS}


def make(name: str, info: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the editor's format, the API format) of a workflow, for the nodes of a server's ``/object_info``."""
    kind, build = GRAPHS[name]
    graph = kind(info)
    build(graph)
    ui = graph.ui()
    ui["extra"]["api"] = f"api/{name}.json"
    return ui, graph.api()


def main(server: str) -> None:
    """Write every workflow and blueprint for the nodes of a running ComfyUI."""
    with urllib.request.urlopen(f"{server}/object_info") as answer:
        info = json.load(answer)
    for name, title in FILES.items():
        for file, content in zip(
            (HERE / f"{title}.json", HERE / "api" / f"{name}.json"), make(name, info), strict=True
        ):
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    for title, build in BLUEPRINTS.items():
        content = build(Graph(info))
        (HERE.parent / "subgraphs" / f"{title}.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8188")
