"""The pipeline file that `dg scaffold defs` writes: the least that runs, and every other field as a comment."""

TEMPLATE = """\
type: batch_platform.BatchInferencePipeline

# Every field is explained in the component's docs in the Dagster UI (`make ui`, then Deployment > batch_platform
# > Components) and by `dg check defs`. What is commented out shows the default, or an example.
attributes:
  name: NAME                  # prefix of the asset keys; default: this folder's name
  description: ""
  # owners: ["team:growth"]

  partitions:
    cadence: daily            # daily | hourly | weekly | monthly
    start: "2026-01-01"
    # end: "2027-01-01"       # exclusive; without it the partitions grow with time
    # timezone: UTC

  source:
    uri: "data/NAME/{partition}.parquet"   # file, folder or glob; {partition} is the partition key
    format: parquet           # parquet | csv | jsonl | documents | delta | sql (with connection_env and query) | predictions
    # partition_column: null  # for a uri without {partition}: the date or timestamp column that assigns rows
    row_key: id               # unique within a partition
    # on_duplicate: fail      # fail | first | last | quarantine
    # allow_empty: false      # true: a partition without rows or files is valid
    columns:                  # the contract; other columns of the source are ignored
      id: {type: string, required: true}
      text: {type: string, required: true}
      # amount: {type: float64, min: 0}
      # plan: {type: string, allowed: [basic, pro]}
      # email: {type: string, sensitive: true}

  # lookups:                # point-in-time joins: the newest row not after the partition's end
  #   - {uri: "data/NAME/usage/*.parquet", on: id, event_time: ts, lookback_days: 30}

  # features:               # default: the columns pass through
  #   steps: [{clean_text: {column: text}}, {chunk: {column: text, max_tokens: 256, overlap: 32}}]
  #   recipe: "batch_platform.defs.NAME.features:RECIPE"   # instead of steps: a recipe in Python

  model: {name: NAME, alias: champion}     # `batch-platform models register --help`
  # model: {name: NAME, alias: champion, challenger: next}   # another version scores the same rows, and is compared

  # decision: {positive_class: churned, threshold: 0.5}
  # decision:               # or rules, of which the first that applies decides
  #   rules: [{when: {score: {at_least: 0.8}, plan: {is_in: [pro]}}, decide: call}]
  #   otherwise: nothing

  # inference:
  #   device: auto            # auto | cpu | cuda
  #   devices: 1              # or a number of GPUs, or all: a process for each
  #   dtype: auto             # auto | float32 | bfloat16 | float16
  #   batch_tokens: auto
  #   batch_rows: auto
  #   shard_rows: auto
  #   max_error_share: 0.01   # more quarantined rows than this fail the partition

  # labels: {uri: "data/NAME/labels/{partition}.parquet", row_key: id, column: label, horizon_days: 30, floors: {auc: 0.7}}

  # sinks: [{type: sql, connection_env: SCORES_DB, table: NAME_scores}]   # or {type: parquet, uri: FOLDER}

  # drift: {reference_partitions: 56, false_alarms_per_quarter: 1, columns: auto}
  # quality: {history_partitions: 56, severity: warn}   # error: an unusual partition is not published

  # automation: {trigger: schedule, cron: "0 3 * * *", catch_up: 7}
"""
