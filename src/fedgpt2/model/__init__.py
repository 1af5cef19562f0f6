"""GPT-2, its loss, its weights as one buffer, and the hardware it runs on."""
