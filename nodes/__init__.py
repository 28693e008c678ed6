"""The pack's nodes. The only code that imports ComfyUI, and only when ComfyUI asks for the list."""


def node_list() -> list[type]:
    """Every node, in the order of a typical graph."""
    from ._shown import remembered
    from .bench import SifmIsrAggregate, SifmLoadBenchmark
    from .consistency import SifmConsistencyReport
    from .edit import SifmAttackerEdit
    from .from_model import SifmEditorFromModel
    from .hold import SifmDoesItHold
    from .hook import SifmFeatureHook
    from .immunize import SifmBaselineImmunize, SifmImmunize
    from .judge import SifmMllmJudge
    from .load import SifmLoadEditor
    from .measure import SifmClipScore, SifmPairwiseMetrics
    from .plan import SifmAttackPlan
    from .prompts import SifmUnseenPrompts
    from .protect import SifmProtectImage
    from .purify import SifmPurify
    from .results import SifmComparisonGrid, SifmRecordsExport, SifmResultsTable
    from .save import SifmSaveProtected
    from .setup import SifmSetup

    nodes: list[type] = [
        SifmProtectImage,
        SifmDoesItHold,
        SifmLoadEditor,
        SifmSetup,
        SifmEditorFromModel,
        SifmLoadBenchmark,
        SifmUnseenPrompts,
        SifmFeatureHook,
        SifmImmunize,
        SifmBaselineImmunize,
        SifmSaveProtected,
        SifmAttackPlan,
        SifmPurify,
        SifmAttackerEdit,
        SifmPairwiseMetrics,
        SifmClipScore,
        SifmMllmJudge,
        SifmIsrAggregate,
        SifmResultsTable,
        SifmConsistencyReport,
        SifmComparisonGrid,
        SifmRecordsExport,
    ]
    return [remembered(node) for node in nodes]
