"""LoRAs: files read, matched with a network, and held as factors for requests to choose from."""
