"""A training run whose MLflow record names the snapshot that it read: location, content hash and tables.

`mlflow_input.py SNAPSHOT`, with the variables of MLflow (MLFLOW_TRACKING_URI, ...). Needs mlflow and bpr-etl.
"""

from __future__ import annotations

import sys

import mlflow
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset

import bpr_etl

snapshot = bpr_etl.open_snapshot(sys.argv[1])
where = snapshot.url or str(snapshot.folder)
with mlflow.start_run():
    digest = snapshot.manifest["content_sha256"][:32]  # MLflow takes 36 characters at most
    name = snapshot.manifest["snapshot"]
    mlflow.log_input(MetaDataset(resolve_dataset_source(where), name=name, digest=digest), context="training")
    mlflow.log_params({"negatives": snapshot.settings["negatives"], "split": snapshot.settings["split"]})
    train = snapshot.scan("triples", "train")  # train your model with it
    mlflow.log_metric("triples", train.select("weight").collect().height)
