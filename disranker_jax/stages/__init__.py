"""One file per stage of the pipeline; the rows of the result table; the models of a run."""
