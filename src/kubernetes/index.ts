export {type ApiObject, type ApiRequest, createKubernetesClient, type KubernetesClient} from './client.ts';
