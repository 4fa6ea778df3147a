"""The black-box teacher: client, store of paid answers, prices, the buying walk, and a stand-in server."""
