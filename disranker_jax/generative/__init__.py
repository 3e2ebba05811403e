"""DGR: a decoder that finds pages by writing n-grams of them, taught by a ranker.

Sources: SEAL (arXiv:2204.10628), MINDER (arXiv:2305.16675), LTRGR (arXiv:2306.15222) and DGR
(arXiv:2402.10769). docs/generative.md has the method.

  pages      the collection as one text of token ids: titles, bodies, pseudo-queries
  suffixes   the sorted suffixes of that text: which tokens may follow, how often, and where
  frontier   the same on the device: the best tokens after the n-grams of a beam
  decoding   the device program of a search: a prompt's cache in, the beams of all steps out
  beams      beam search that writes n-grams of the collection only
  evidence   n-grams -> pages
  ngrams     the same scores with gradients, for training
  stages     index, memorise, retrieve, ltrgr, align, search
"""
