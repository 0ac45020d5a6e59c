"""Runs the chain of sessions from outside Kaggle: push, wait, look at what came out, push the next.

``journal`` holds what is known, ``decide`` says what to do next, ``client`` speaks with Kaggle,
``kernel`` writes what is pushed, ``harvest`` judges what came out, ``run`` is the loop around them.
"""
