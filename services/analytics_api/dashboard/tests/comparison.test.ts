import { describe, expect, test } from "vitest";
import { betweenOf, chanceOf } from "../src/comparison";

const difference = {
  of_a: 40,
  in_a: 20,
  share_a: 0.5,
  of_b: 40,
  in_b: 10,
  share_b: 0.25,
  difference: -0.25,
  difference_low: -0.43,
  difference_high: -0.04,
  p_value: 0.02,
  p_adjusted: 0.04,
  significant: true,
};

describe("whether a difference is more than chance", () => {
  test.each([
    [difference, "yes, p = 0.040"],
    [{ ...difference, p_adjusted: 0.0001 }, "yes, p = below 0.001"],
    [{ ...difference, p_adjusted: 0.3, significant: false }, "no, p = 0.300"],
    [{ ...difference, p_value: null, p_adjusted: null, significant: false }, "not compared: added since"],
    [{ ...difference, of_b: 0, p_value: null, p_adjusted: null, significant: false }, "one side has nobody"],
  ])("%# is said", (of, text) => expect(chanceOf(of)).toBe(text));

  test("its interval is in points, and none where it was not tested", () => {
    expect(betweenOf(difference)).toBe("−43.0 to −4.0 points");
    expect(betweenOf({ ...difference, difference_low: null, difference_high: null })).toBe("–");
  });
});
