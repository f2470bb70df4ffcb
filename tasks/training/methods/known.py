"""PEFT's tables with our own methods in them.  Whoever loads an adapter calls `make_all_known` first."""

from tasks.training.methods.bitfit import BitFitConfig, BitFitModel
from tasks.training.methods.bottleneck import BottleneckConfig, BottleneckModel
from tasks.training.methods.head import HeadConfig, HeadModel
from tasks.training.methods.seq2seq_prefix import Seq2SeqPrefixConfig, Seq2SeqPrefixModel
from tasks.training.methods.tuner import OwnType, make_known


def make_all_known() -> None:
    """Let PEFT build, save and load adapters of our own methods.  Calling it again changes nothing."""
    make_known(OwnType.BOTTLENECK, BottleneckConfig, BottleneckModel)
    make_known(OwnType.BITFIT, BitFitConfig, BitFitModel)
    make_known(OwnType.HEAD_TUNING, HeadConfig, HeadModel)
    make_known(OwnType.SEQ2SEQ_PREFIX, Seq2SeqPrefixConfig, Seq2SeqPrefixModel)
