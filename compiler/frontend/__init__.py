"""Models as they come. Encoders: ONNX to `Model`, by data flow and never by node names. Decoders: files to `Decoder`.

A decoder's configuration and the names of its weights are read by its family (families/), and its weights are made of
the stored ones by recipes when they are asked for.
"""
