"""The children of :mod:`mapsage_kaggle.jobs`: what needs torch to evaluate, predict, export and average."""
