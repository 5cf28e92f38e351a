"""Put Active Token Mixers into a model that exists, and take them out again."""
