"""A node pack for the tests: an editor that fails as a real one may."""

import copy

import torch


class FullMemory:
    """An editor like the given one, whose encoder finds no memory after a few steps."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("SIFM_EDITOR",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"editor": ("SIFM_EDITOR",)}}

    def run(self, editor):
        broken = copy.copy(editor)
        broken.editor, left = copy.copy(editor.editor), iter(range(3))

        def encode(image, noise=None):
            if next(left, None) is None:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return editor.editor.encode(image, noise)

        broken.editor.encode = encode
        return (broken,)


NODE_CLASS_MAPPINGS = {"TEST_FullMemory": FullMemory}
