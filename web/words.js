// What the extension says in the language of the page; English where there is no other.
import { app } from "../../scripts/app.js";

const WORDS = {
  en: {
    results: "Results, so that nothing is computed twice", shown: "What nodes show", runs: "Runs of Results Table", "judges.sqlite": "Answers of paid judges", "annotations.jsonl": "Judgements of people",
  },
  zh: {
    "The table and the edits appear here after a run.": "运行后，表格与编辑结果显示在这里。",
    "The table and the edits that are disputed appear here after a run.": "运行后，表格与有分歧的编辑显示在这里。",
    "The light, the weakest cases and the pictures appear here after a run.": "运行后，结论灯、最薄弱的情况与图片显示在这里。",
    "The table appears here after a run.": "运行后，表格显示在这里。",
    "The edits with their verdicts appear here after a run.": "运行后，编辑结果与评判结论显示在这里。",
    "How visible it is, and what it does not promise, stands here after a run.": "运行后，这里说明改动有多明显，以及它不保证什么。",
    "The loss curve appears here after a run.": "运行后，损失曲线显示在这里。",
    "A demonstration by a toy. It protects nothing.": "玩具模型的演示，不提供任何保护。",
    "Before, then protected: look at 100%": "原图与受保护图：以 100% 查看",
    "SIFM runs": "SIFM 运行记录", "← Runs": "← 运行记录", "Pictures": "图片", "Start": "开始", "your name": "你的名字", "Close (Esc)": "关闭 (Esc)",
    "None yet. A graph with a SIFM Results Table makes one.": "还没有。带有 SIFM 结果表的工作流会生成一个。",
    "Can the judges be trusted?": "评判可信吗？", "Judge the edits yourself, blind": "自己来评判（不显示保护方式）",
    "A frame: all judges say that the edit failed. Click for before and after, with their reasons.": "有边框：所有评判都认为编辑失败。点击查看前后对比与理由。",
    "SIFM: runs and judgements": "SIFM：运行记录与评判",
    "Does the edit miss the instruction?": "编辑是否没有按指令进行？", "Is it visibly degraded?": "是否明显劣化？",
    yes: "是", no: "否", "cannot say": "无法判断", before: "编辑前", after: "编辑后", source: "源图", edit: "编辑",
    Clear: "清除", results: "已算过的结果", shown: "节点显示的内容", runs: "运行记录", "judges.sqlite": "付费评判的回答", "annotations.jsonl": "人工评判",
  },
  ja: {
    "The table and the edits appear here after a run.": "実行すると、表と編集結果がここに表示されます。",
    "The table and the edits that are disputed appear here after a run.": "実行すると、表と判定の分かれた編集がここに表示されます。",
    "The light, the weakest cases and the pictures appear here after a run.": "実行すると、信号、最も弱い場合、画像がここに表示されます。",
    "The table appears here after a run.": "実行すると、表がここに表示されます。",
    "The edits with their verdicts appear here after a run.": "実行すると、編集結果と判定がここに表示されます。",
    "How visible it is, and what it does not promise, stands here after a run.": "実行すると、どれほど目立つか、何を保証しないかがここに表示されます。",
    "The loss curve appears here after a run.": "実行すると、損失の曲線がここに表示されます。",
    "A demonstration by a toy. It protects nothing.": "おもちゃのモデルによる実演です。何も保護しません。",
    "Before, then protected: look at 100%": "元の画像と保護後：100%で見る",
    "SIFM runs": "SIFM の実行記録", "← Runs": "← 実行記録", "Pictures": "画像", "Start": "開始", "your name": "お名前", "Close (Esc)": "閉じる (Esc)",
    "None yet. A graph with a SIFM Results Table makes one.": "まだありません。SIFM 結果表のあるワークフローを実行すると作られます。",
    "Can the judges be trusted?": "判定は信頼できるか", "Judge the edits yourself, blind": "自分で判定する（保護の方法は伏せて）",
    "A frame: all judges say that the edit failed. Click for before and after, with their reasons.": "枠つき：すべての判定者が編集は失敗とみなしました。クリックすると前後の比較と理由を表示します。",
    "SIFM: runs and judgements": "SIFM：実行記録と判定",
    "Does the edit miss the instruction?": "編集は指示から外れていますか？", "Is it visibly degraded?": "見た目が明らかに劣化していますか？",
    yes: "はい", no: "いいえ", "cannot say": "わからない", before: "編集前", after: "編集後", source: "元画像", edit: "編集",
    Clear: "消去", results: "計算済みの結果", shown: "ノードに表示した内容", runs: "実行記録", "judges.sqlite": "有料の判定の回答", "annotations.jsonl": "人による判定",
  },
};

export const LANGUAGES = Object.keys(WORDS);

export function say(text) {
  const language = String(app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? "en").split("-")[0];
  return (WORDS[language] ?? WORDS.en)[text] ?? text;
}
