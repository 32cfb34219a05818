"""Guard models: the seam, a scripted one, a local one, and any LangChain chat model."""
