"""The pack's nodes. The only code that imports ComfyUI, and only when ComfyUI asks for the list."""


def node_list() -> list[type]:
    """Every node, in the order of a typical graph."""
    from .bench import SifmIsrAggregate, SifmLoadBenchmark
    from .edit import SifmAttackerEdit
    from .hook import SifmFeatureHook
    from .immunize import SifmBaselineImmunize, SifmImmunize, SifmSaveProtected
    from .judge import SifmMllmJudge
    from .load import SifmLoadEditor
    from .measure import SifmPairwiseMetrics

    return [
        SifmLoadEditor,
        SifmLoadBenchmark,
        SifmFeatureHook,
        SifmImmunize,
        SifmBaselineImmunize,
        SifmSaveProtected,
        SifmAttackerEdit,
        SifmPairwiseMetrics,
        SifmMllmJudge,
        SifmIsrAggregate,
    ]
