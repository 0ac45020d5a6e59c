"""Runs the chain of sessions from outside Kaggle: push, wait, look at what came out, push the next.

``journal`` holds what is known, ``look`` sees what is there, ``decide`` says what to do next as a pure
function of the two, ``run`` is the loop around them. ``client`` and ``client_*`` speak with Kaggle, whose
refusals ``answers`` sorts; ``push`` sends what ``kernel`` writes; ``harvest`` judges what came out, ``log``
reads what was printed, ``store`` puts it into a data set. ``forecast``, ``progress``, ``notify`` and
``status`` are for people; ``command`` is the door.
"""
