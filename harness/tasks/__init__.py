"""Question sets: names, validation, calibration samples, and a model's answers.

    summary, table = evaluate(vlm, Questions(("mini_vqav2", "my.parquet"), "validation", 600))

A task is a shipped name, a parquet file or folder (see `harness.tasks.data` for the columns), an official set (see
`harness.tasks.official`), or one of lmms-eval's own tasks. The first call that needs lmms-eval and torch imports them.
"""

from harness.tasks.answers import BATCH as BATCH
from harness.tasks.answers import Answers as Answers
from harness.tasks.answers import answer as answer
from harness.tasks.answers import answer_share as answer_share
from harness.tasks.answers import data_hash as data_hash
from harness.tasks.answers import evaluate as evaluate
from harness.tasks.answers import majority as majority
from harness.tasks.answers import samples as samples
from harness.tasks.answers import stamps as stamps
from harness.tasks.answers import time_against_stock as time_against_stock
from harness.tasks.catalogue import MINI as MINI
from harness.tasks.catalogue import check as check
from harness.tasks.catalogue import count as count
from harness.tasks.catalogue import describe as describe
from harness.tasks.catalogue import fetched as fetched
from harness.tasks.catalogue import local as local
from harness.tasks.catalogue import names as names
from harness.tasks.catalogue import question_set as question_set
from harness.tasks.catalogue import require as require
from harness.tasks.catalogue import sizes as sizes
from harness.tasks.data import SPLITS as SPLITS
from harness.tasks.scores import mean as mean
from harness.tasks.scores import summary as summary
