"""Attack a picture before and after its protection, with several seeds, and count which edits still work.

python docs/examples/does_it_hold.py
"""

from sifm_core import consensus, edit, immunize, isr, judge, load_editor
from sifm_core.miniature import benchmark

editor = load_editor("miniature-ip2p")
judges = ["miniature:conv", "miniature:patch"]
clean, protected = [], []

for item in benchmark.load(n=4):
    source, prompt = item.image[None], item.instruction
    immunized = immunize(source, editor, prompt=prompt, steps=50).image
    for seed in range(3):
        for attacked, failed in ((source, clean), (immunized, protected)):
            edited = edit(attacked, editor, prompt=prompt, seed=seed)
            failed.append(consensus(judge(source, edited, prompt, judges)))
    print(f"{item.id}, {prompt!r}: failed edits clean {clean[-3:]}, protected {protected[-3:]}")

pictures = [i for i in range(4) for _ in range(3)]  # seeds of one picture are no independent samples
result = isr(protected, clean=clean, clusters=pictures)
print(f"ISR {result.rate}, interval {result.low} to {result.high}, unclear {result.unclear}")
print(f"clean floor {result.clean_rate}, net ISR {result.net}, improved {result.improved}")
