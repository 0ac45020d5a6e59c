"""The sentences that panels and the report show, by language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mapsage_kaggle.display.locale import words_evaluation, words_notebook
from mapsage_kaggle.display.locale.messages import NAMES, translate
from mapsage_kaggle.errors import MapsageError, UsageError

_ENGLISH: Mapping[str, str] = {
    # Stop reasons.
    "running": "running",
    "completed": "completed",
    "early": "stopped early",
    "deadline": "out of time",
    "user": "stopped",
    "failed": "failed",
    "refused": "refused",
    # The preflight panel.
    "preflight": "Preflight",
    "preflight_good": "This machine can run the session.",
    "preflight_bad": "This machine cannot run the session.",
    "data_good": "{path}: {pairs}; {decoded} pairs decoded, all sound. Classes: {shares}.",
    "data_unchecked": "{path}: not one of the kit's own layouts, so only its folders were looked for.",
    # The discovery panel.
    "discovery": "Discovery",
    "resume": "Resuming at iteration {iteration} from {path}",
    "weights-only": "Weights only from {path}: optimizer and schedule start anew, from iteration 0",
    "fresh": "Starting fresh: there is no checkpoint of this run",
    "candidates": "What was found, and why it was taken or not",
    # The configuration panel.
    "configuration": "Configuration",
    "iterations": "iterations",
    "from_to": "{start:,} to {end:,}",
    "batch": "batch",
    "batch_of": "{effective} images an iteration, {micro} at a time",
    "processes": "runs on",
    "gpus": "{count} GPU(s)",
    "cpu": "CPU, {threads} threads",
    "time_left": "time",
    "until_written": "{left} until everything must be written",
    "work_dir": "work dir",
    "changed_keys": "{count} keys of the config are changed to run it here",
    # The training view.
    "training": "Training",
    "waiting": "Starting the training process …",
    "loss": "loss",
    "lr": "learning rate",
    "pace": "pace",
    "s_per_iteration": "{value:.2f} s/iteration",
    "saved": "last checkpoint",
    "left": "left",
    # The outcome.
    "outcome": "What next",
    "session": "Session {index}",
    "newest": "newest checkpoint",
    "best": "best {metric}",
    "at_iteration": "{value} at iteration {iteration:,}",
    "next_completed": "The run is finished. {best}Nothing is left to attach.",
    "next_early": "{message} {best}Nothing is left to attach; --extend-to {max_iters} (EXTEND_TO) takes it up again.",
    "next_best": "Its best checkpoint is {file}. ",
    "next_refused": "Nothing was trained, and nothing was changed. {message}",
    "next_failed": "What is proven is safe. Read the message and the end of {log}; then attach the output of "
    "this session as an input and run the same notebook again: it must resume at iteration {iteration:,}.",
    "next_go_on": "To go on, attach the output of this session as an input and run the same notebook again: "
    'it must resume at iteration {iteration:,}. To be sure of that, set RESUME = "require" and '
    "EXPECT_ITERATION = {iteration}.",
    "report_at": "The whole report is {path}",
    # What a session's time went into.
    "time_spent": "time went into",
    "time_start_up": "starting",
    "time_waiting_for_data": "waiting for data",
    "time_forward_backward": "forward and backward",
    "time_optimizer": "optimizer",
    "time_saving": "saving",
    "time_validation": "validating",
    "time_other": "all else",
    "list_mark": ", ",
}

_CHINESE: Mapping[str, str] = {
    "running": "运行中",
    "completed": "已完成",
    "early": "提前结束",
    "deadline": "时间已到",
    "user": "已停止",
    "failed": "失败",
    "refused": "已拒绝",
    "preflight": "运行前检查",
    "preflight_good": "本机可以运行这次会话。",
    "preflight_bad": "本机无法运行这次会话。",
    "data_good": "{path}：{pairs}；解码了 {decoded} 对，全部正常。类别占比：{shares}。",
    "data_unchecked": "{path}：不是本工具自带的数据集格式，因此只查找了目录。",
    "discovery": "查找检查点",
    "resume": "从 {path} 的第 {iteration} 次迭代接着训练",
    "weights-only": "仅取 {path} 的权重：优化器和学习率计划重新开始，从第 0 次迭代训练",
    "fresh": "从头训练：没有本任务的检查点",
    "candidates": "找到了什么，为何采用或不采用",
    "configuration": "配置",
    "iterations": "迭代",
    "from_to": "{start:,} 到 {end:,}",
    "batch": "批大小",
    "batch_of": "每次迭代 {effective} 张图像，每次前向 {micro} 张",
    "processes": "运行于",
    "gpus": "{count} 块 GPU",
    "cpu": "CPU，{threads} 个线程",
    "time_left": "时间",
    "until_written": "{left} 之内必须写完所有文件",
    "work_dir": "工作目录",
    "changed_keys": "为在此运行，改动了配置中的 {count} 个键",
    "training": "训练",
    "waiting": "正在启动训练进程 …",
    "loss": "损失",
    "lr": "学习率",
    "pace": "速度",
    "s_per_iteration": "{value:.2f} 秒/迭代",
    "saved": "最新检查点",
    "left": "剩余",
    "outcome": "下一步",
    "session": "第 {index} 次会话",
    "newest": "最新检查点",
    "best": "最佳 {metric}",
    "at_iteration": "{value}，第 {iteration:,} 次迭代",
    "next_completed": "训练任务已完成。{best}不需要再挂载什么。",
    "next_early": "{message}{best}不需要再挂载什么；要继续训练，请用 --extend-to {max_iters}（EXTEND_TO）。",
    "next_best": "最佳检查点是 {file}。",
    "next_refused": "没有训练，也没有改动任何内容。{message}",
    "next_failed": "已验证的检查点都还在。请查看提示信息和 {log} 的末尾，然后把本次会话的输出挂载为输入，"
    "再运行同一个 Notebook：它应从第 {iteration:,} 次迭代接着训练。",
    "next_go_on": "要继续训练，请把本次会话的输出挂载为输入，再运行同一个 Notebook：它应从第 {iteration:,} "
    '次迭代接着训练。若要确保如此，请设 RESUME = "require" 和 EXPECT_ITERATION = {iteration}。',
    "report_at": "完整报告：{path}",
    "time_spent": "时间用于",
    "time_start_up": "启动",
    "time_waiting_for_data": "等待数据",
    "time_forward_backward": "前向与反向",
    "time_optimizer": "优化器",
    "time_saving": "保存",
    "time_validation": "验证",
    "time_other": "其他",
    "list_mark": "，",
}

CATALOGUES: Mapping[str, Mapping[str, str]] = {
    "en": {**_ENGLISH, **words_notebook.ENGLISH, **words_evaluation.ENGLISH},
    "zh": {**_CHINESE, **words_notebook.CHINESE, **words_evaluation.CHINESE},
}


def check_language(language: str) -> None:
    """Refuse a language that nothing is written in.

    Raises:
        UsageError: It is none of ``CATALOGUES``.
    """
    if language not in CATALOGUES:
        raise UsageError(f"There are no texts in {language!r}.", f"Choose one of {', '.join(CATALOGUES)}.")


class Words:
    """A catalogue in one language: ``words("resume", iteration=8000, path=...)``."""

    def __init__(self, language: str = "en") -> None:
        check_language(language)
        self.language = language
        self._texts = CATALOGUES[language]

    def __call__(self, key: str, **values: object) -> str:
        """Return the text of a key, with values put into it."""
        text = self._texts[key]
        return text.format(**values) if values else text

    def translate(self, message: str) -> str:
        """Return a message of another room, which states it in English, in this language."""
        return translate(message, self.language)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Let what is refused within be refused in this language, as the same error."""
        try:
            yield
        except MapsageError as error:
            problem, remedy = self.translate(error.problem), self.translate(error.remedy)
            error.problem, error.remedy, error.args = problem, remedy, (problem, remedy)
            raise

    def refusal(self, error: MapsageError) -> str:
        """Return what an error says, and what to do, in this language."""
        return f"{self.translate(error.problem)} {self.translate(error.remedy)}".rstrip()

    def name(self, check: str) -> str:
        """Return the name of one of preflight's checks in this language."""
        return NAMES.get(self.language, {}).get(check, check)

    def get(self, key: str) -> str:
        """Return the text of a key; the key itself where it is a name that needs none."""
        return self._texts.get(key, key)
