"""The toy world: a procedural universe in which every claim of the model can be measured on a laptop.

A plug-in: one source, one set of annotators, one benchmark, one frozen decoder, one trained model. Nothing outside this
package imports it; the registries name it.
"""
