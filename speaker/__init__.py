"""Waveform -> speaker embedding -> score.  Not built yet; the command says so."""
