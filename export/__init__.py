"""From trained models to bundles. The writer is ``stepfuse.write_bundle``; converters will be added here."""

if __name__ != "stepfuse.export":
    raise ImportError(f"this folder installs as 'stepfuse.export': import that, not {__name__!r}")
