"""Products, mixtures and machines gone wrong, as reported of others' code.

As in ``wrong_balance``: titles are ours, a report is no verdict, ``paper`` is the paper as it was.

    M experts or modalities, K samples, N or B data, D latent dimensions
"""
from minimoe import ops
from minimoe.densities import gaussian_kl, laplace_log_density, log_mean_exp, product_of_gaussians
from minimoe.oracle.variants import bug, form

MVAE = "mvae_2018/objective", "mvae_2018/multivae"
MMVAE = tuple(f"mmvae_2019/{kind}" for kind in ("bounds", "multivae", "multivae_iwae"))
RBM = tuple(f"products_of_experts_1999/{kind}" for kind in ("rbm", "scikit_learn", "enumeration"))


def _mixed_in_each_dimension(paper):
    def log_mixture_posterior(q, z, alpha=None):
        log_q = laplace_log_density(z, q.location[:, None, None], q.scale[:, None, None])
        if alpha is None:                                              # [M, M, K, B, D]
            return log_mean_exp(log_q, axis=0).sum(axis=-1)
        log_alpha = paper._log(alpha, log_q)[:, None, None, :, None]
        return ops.logsumexp(log_q + log_alpha, axis=0).sum(axis=-1)
    return log_mixture_posterior


def _means_for_variances(name):
    def make(paper):
        right = getattr(paper, name)
        return lambda mean, log_variance, *rest: right(mean, ops.log(ops.square(mean)), *rest)
    return make


def _log_variance_for_sd(paper):
    return lambda mean, log_variance, epsilon: mean + log_variance * epsilon


def _further_divergences(paper):
    def elbo(decoders, x, experts, members, epsilon, log_likelihoods, present=None, weights=None,
             beta=1.0):
        bound = paper.elbo(decoders, x, experts, members, epsilon, log_likelihoods, present,
                           weights, beta)
        posterior = paper.posterior_of(experts, members, present)
        for m in members:
            kl = gaussian_kl(*experts[m], *posterior).sum(axis=-1)     # [N]
            bound = bound - beta * (kl if present is None else ops.where(present[m], kl, 0.0))
        return bound
    return elbo


def _without_prior(paper):
    def product_of_experts(mean, log_variance, present=None):
        present = None if present is None else present[..., None]
        return paper.Gaussian(*product_of_gaussians(mean, log_variance, present=present))
    return product_of_experts


def _prior_left_out(paper):
    def generalized_product(mean, log_variance, log_weight, present=None, prior=None):
        return paper.generalized_product(mean, log_variance, log_weight, present)
    return generalized_product


def _hidden_before(paper):
    return lambda params, steps: steps[-1].hidden_probs


def _chains_before(paper):
    def persistent_gradient(params, data, h, u_visible, u_hidden):
        right = paper.persistent_gradient(params, data, h, u_visible, u_hidden)
        fantasies = paper._sampled(paper.visible_probs(params, h), u_visible)
        now = paper._moments(fantasies, paper.hidden_probs(params, fantasies))
        before = paper._moments(fantasies, h)
        return right._replace(gradient=paper.RBMParams(*(
            g + a - b for g, a, b in zip(right.gradient, now, before))))
    return persistent_gradient


def _hidden_not_sampled(paper):
    def gibbs_step(params, v, u_hidden, u_visible):
        hidden = paper.hidden_probs(params, v)
        visible = paper.visible_probs(params, hidden)
        return paper.GibbsStep(hidden, hidden, visible, paper._sampled(visible, u_visible))
    return gibbs_step


def _opposite_sign(paper):
    return lambda params, v: -paper.free_energy(params, v)


def _unfolded_the_other_way(paper):
    """[.., K, B, D] decoded as K B rows, which come back as [.., B, K, D]."""
    def decode(layers, z):
        if z.ndim < 3:
            return paper.decode(layers, z)
        *starts, K, B, D = z.shape
        rows = paper.decode(layers, z.reshape(*starts, K * B, D))
        return rows.reshape(*starts, B, K, rows.shape[-1]).swapaxes(-3, -2)
    return decode


BUGS = [
    *bug("P1", "components are mixed in each latent dimension, before dimensions are multiplied",
         "scverse/scvi-tools#3188",
         form(MMVAE, log_mixture_posterior=_mixed_in_each_dimension)),
    *bug("P2", "Gaussians are multiplied with squared means for variances",
         "seqam-lab/DMVAE#2, seqam-lab/DMVAE#3",
         form(("mvae_2018/product", *MVAE, "mvae_2018/log_likelihood"),
              product_of_experts=_means_for_variances("product_of_experts")),
         form(("generalized_poe_2022/product", "generalized_poe_2022/model"),
              generalized_product=_means_for_variances("generalized_product"))),
    *bug("P3", "a log-variance is taken for a standard deviation", "cmzuo11/scMVAE#1",
         form((*MVAE, "mvae_2018/log_likelihood"), gaussian_sample=_log_variance_for_sd),
         form("generalized_poe_2022/model", gaussian_sample=_log_variance_for_sd)),
    *bug("P4a", "the bound has divergences between each expert and their product, too",
         "masa-su/pixyz#80", form(MVAE, elbo=_further_divergences)),
    *bug("P4b", "the prior expert is left out of the product", "alawryaguila/multi-view-AE#44",
         form(("mvae_2018/product", *MVAE, "mvae_2018/log_likelihood"),
              product_of_experts=_without_prior),
         form(("generalized_poe_2022/product", "generalized_poe_2022/model"),
              generalized_product=_prior_left_out)),
    *bug("P5", "the negative phase has the hidden units that made the reconstruction, not its own",
         "DsysDML/rbms#31",
         form(RBM[:1], negative_hidden=_hidden_before),
         form(RBM[1:2], persistent_gradient=_chains_before)),
    *bug("P6a", "the reconstruction is made from hidden probabilities, not from states",
         "deeplearning4j/deeplearning4j#3057, rushter/MLAlgorithms#29, "
         "GabrielBianconi/pytorch-rbm#2",
         form(RBM[:2], gibbs_step=_hidden_not_sampled)),
    *bug("P6b", "the energy has the opposite sign", "scikit-learn/scikit-learn#11153",
         form(RBM, free_energy=_opposite_sign)),
    *bug("P7", "samples and data are folded into one axis and unfolded the other way round",
         "AgatheSenellart/MultiVae#25",
         form(MMVAE, decode=_unfolded_the_other_way),
         form("mvae_2018/log_likelihood", decode=_unfolded_the_other_way)),
]
