"""Product rules: what may take the place of multiplication in a matrix product (docs/products.md). One file a rule."""

from anybit.products.product import (
    PRODUCTS,
    LookupProduct,
    PatternProduct,
    Product,
    ProductRule,
    attention_product,
    names_a_file,
    parse_product,
)

__all__ = ["PRODUCTS", "LookupProduct", "PatternProduct", "Product", "ProductRule", "attention_product", "names_a_file", "parse_product"]
