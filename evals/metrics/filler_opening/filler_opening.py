# pyright: basic
# ruff: noqa: RUF001  both scripts have their own punctuation
"""Share of answers that open with filler in place of an answer, in English or Chinese: lower is better."""

import re

import datasets
import evaluate

_DESCRIPTION = "1 where the answer opens with filler (praise, eagerness, talk about itself), else 0."
_ENGLISH = r"""
    (?: sure (?: \s+ thing )? | certainly | absolutely | of \s+ course | no \s+ problem | definitely )
    (?= \s* (?: [!,.:—–] | $ ) | \s+ - )
  | (?: what \s+ an? \s+ | that(?:['’]s| \s+ is) \s+ an? \s+ )?
    (?: great | good | excellent | wonderful | fantastic | interesting | lovely ) \s+ question \b
  | (?: i['’]d | i \s+ would ) \s+ be \s+ (?: (?:very|so|more \s+ than) \s+ )? (?: happy | glad | delighted ) \s+ to \b
  | i(?:['’]m| \s+ am) \s+ (?: happy | glad | here ) \s+ to \s+ (?: help | assist ) \b
  | (?: thanks | thank \s+ you ) (?: \s+ so \s+ much )? \s+ for \s+ (?: asking | your \s+ question | reaching \s+ out ) \b
  | as \s+ an? \s+ (?: ai | a\.i\. | (?:large \s+ )? language \s+ model | (?: ai \s+ | virtual \s+ )? assistant ) \b
  | (?: here (?:['’]s| \s+ is) \s+ (?: the | my | your | an? ) \s+ (?: answer | response ) )
  | let \s+ me \s+ help \b
"""
_CHINESE = r"""
    (?: 当然 (?: 可以 | 了 | 啦 )? | 好的 | 没问题 | 好呀 | 好啊 ) (?= \s* (?: [!！,，。.~～、:：] | $ ) )
  | (?: 这 (?: 真 )? 是 (?: 一 )? 个? )? (?: 很 | 非常 | 真 )? (?: 好 | 棒 | 有趣 | 不错 ) 的? (?: 一个 )? 问题
  | 很 (?: 高兴 | 乐意 | 荣幸 ) (?: 能 | 为 | 帮 | 回答 )
  | 我 很 (?: 高兴 | 乐意 | 荣幸 )
  | (?: 感谢 | 谢谢 ) 您? 你? 的? (?: 提问 | 问题 | 咨询 )
  | (?: 作为 | 身为 ) (?: 一 [个名位款] )? \s* (?: AI | 人工智能 | 语言模型 | 大?型?语言模型 | (?: 智能 | AI \s* )? 助手 )
"""
_FILLER = re.compile(rf"[\s\W]* (?: {_ENGLISH} | {_CHINESE} )", re.IGNORECASE | re.VERBOSE)


class FillerOpening(evaluate.Metric):
    """predictions: text."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: answers",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str]) -> dict:
        values = [float(_FILLER.match(answer) is not None) for answer in predictions]
        return {"filler_opening": sum(values) / len(values), "values": values}
