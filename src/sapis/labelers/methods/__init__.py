"""One module for each source of labels; each has ``build(config)``, which returns a `sapis.labelers.labeler.Labeler`."""
