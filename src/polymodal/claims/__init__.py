"""The claims of papers, one file per recipe: arms, corpus, budget and metrics of `polymodal reproduce NAME`."""
