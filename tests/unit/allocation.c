/* The knapsack of allocate against all choices there are. */
#include "check.h"

#include <math.h>

#include "run/allocation.h"

enum { MATRICES = 5, MOST = 6 };

static uint64_t seed = 1;

static double uniform(void) {
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  return (double)(seed >> 11) / 9007199254740992.0;
}

/* Sizes are whole numbers, losses fall with size on the whole; some candidates are dominated. */
static void make_problem(candidate list[MATRICES][MOST], candidates m[MATRICES]) {
  for (int k = 0; k < MATRICES; k++) {
    m[k] = (candidates){list[k], 1 + (int)(uniform() * MOST)};
    double scale = exp(4 * uniform());
    for (int i = 0; i < m[k].count; i++) {
      double size = 1 + floor(20 * uniform());
      list[k][i] = (candidate){size, scale * exp(-0.3 * size) * (0.5 + uniform())};
    }
  }
}

static double best_of_all(const candidates *m, double budget) {
  double best = INFINITY;
  int at[MATRICES] = {0};
  for (;;) {
    double size = 0, loss = 0;
    for (int k = 0; k < MATRICES; k++) {
      size += m[k].list[at[k]].size;
      loss += m[k].list[at[k]].loss;
    }
    if (size <= budget && loss < best) best = loss;
    int k = 0;
    while (k < MATRICES && ++at[k] == m[k].count) at[k++] = 0;
    if (k == MATRICES) return best;
  }
}

static void check_choice(const candidates *m, const int *choice, double budget, const allocation *a) {
  double size = 0, loss = 0;
  for (int k = 0; k < MATRICES; k++) {
    assert_in_range(choice[k], 0, m[k].count - 1);
    size += m[k].list[choice[k]].size;
    loss += m[k].list[choice[k]].loss;
  }
  assert_true(size <= budget && size == a->size);
  assert_true(fabs(loss - a->loss) <= 1e-12 * loss);
}

/* bound <= optimum <= ours, for every budget from the least to more than all; and ours is the optimum mostly. */
static void test_against_all_choices(void **state) {
  (void)state;
  int optimal = 0, cases = 0;
  double worst = 0;
  for (int problem = 0; problem < 60; problem++) {
    candidate list[MATRICES][MOST];
    candidates m[MATRICES];
    int choice[MATRICES];
    make_problem(list, m);
    double last = INFINITY, least = allocation_least(m, MATRICES);
    for (double budget = least; budget <= 105; budget += 3) {
      allocation a;
      assert_done(allocation_choose(m, MATRICES, budget, choice, &a));
      check_choice(m, choice, budget, &a);
      double best = best_of_all(m, budget);
      assert_true(a.bound <= best * (1 + 1e-12) && best <= a.loss * (1 + 1e-12));
      assert_true(a.bound <= last * (1 + 1e-12)); /* a larger budget promises no less */
      last = a.bound;
      cases++;
      optimal += a.loss <= best * (1 + 1e-12);
      worst = fmax(worst, a.loss / best);
    }
    assert_true(best_of_all(m, least - 0.5) == INFINITY);
  }
  if (optimal < cases * 0.75 || worst > 2) fail_msg("%d of %d cases optimal, worst %.3f times the optimum", optimal, cases, worst);
}

/* Where the budget is used up at a corner of the hull there is no gap. */
static void test_no_gap_at_corners(void **state) {
  (void)state;
  candidate list[MATRICES][MOST];
  candidates m[MATRICES];
  int choice[MATRICES], corners = 0;
  for (int k = 0; k < MATRICES; k++) {
    m[k] = (candidates){list[k], MOST};
    for (int i = 0; i < MOST; i++) list[k][i] = (candidate){(k + 1) * (MOST - i), (k + 1.5) * exp(-(MOST - i) / (k + 1.0))}; /* convex */
  }
  for (double budget = allocation_least(m, MATRICES); budget <= 90; budget++) {
    allocation a, same;
    assert_done(allocation_choose(m, MATRICES, budget, choice, &a));
    if (a.size < budget && a.size < 90) continue;
    assert_done(allocation_choose(m, MATRICES, a.size, choice, &same));
    check_choice(m, choice, a.size, &same);
    corners += same.loss - same.bound <= 1e-12 * same.loss;
    assert_true(same.loss >= best_of_all(m, a.size) * (1 - 1e-12));
  }
  assert_true(corners > 20);
}

static void test_small_cases(void **state) {
  (void)state;
  const candidate one[] = {{10, 1}, {10, 0.5}, {20, 0.5}, {5, 3}, {7, 4}};
  const candidates m[] = {{one, 5}};
  int choice[1];
  allocation a;
  assert_true(allocation_least(m, 1) == 5);
  assert_done(allocation_choose(m, 1, 5, choice, &a));
  assert_true(choice[0] == 3 && a.size == 5 && a.loss == 3 && a.bound == 3);
  assert_done(allocation_choose(m, 1, 9, choice, &a)); /* between two corners: half the edge and more, in the bound alone */
  assert_true(choice[0] == 3 && a.loss == 3 && fabs(a.bound - (3 - 2.5 * 4 / 5)) < 1e-15);
  assert_done(allocation_choose(m, 1, 1e9, choice, &a));
  assert_true(choice[0] == 1 && a.loss == 0.5 && a.bound == 0.5); /* of equal losses the smaller */
}

/* From any choice that fits, fill only improves, and stops when nothing that would is left. */
static void test_fill(void **state) {
  (void)state;
  for (int problem = 0; problem < 50; problem++) {
    candidate list[MATRICES][MOST];
    candidates m[MATRICES];
    int choice[MATRICES];
    double size = 0, loss = 0;
    make_problem(list, m);
    for (int k = 0; k < MATRICES; k++) {
      choice[k] = (int)(uniform() * m[k].count);
      size += list[k][choice[k]].size;
      loss += list[k][choice[k]].loss;
    }
    double budget = size + floor(10 * uniform());
    allocation a = allocation_fill(m, MATRICES, budget, choice);
    check_choice(m, choice, budget, &a);
    assert_true(a.loss <= loss * (1 + 1e-12) && a.loss >= best_of_all(m, budget) * (1 - 1e-12));
    for (int k = 0; k < MATRICES; k++)
      for (int i = 0; i < m[k].count; i++)
        assert_true(list[k][i].loss >= list[k][choice[k]].loss || a.size + list[k][i].size - list[k][choice[k]].size > budget);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_small_cases),
      cmocka_unit_test(test_against_all_choices),
      cmocka_unit_test(test_no_gap_at_corners),
      cmocka_unit_test(test_fill),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
